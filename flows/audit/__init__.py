"""What an auditor asks: where a model came from, what came from a source, what differs, what is at odds."""
