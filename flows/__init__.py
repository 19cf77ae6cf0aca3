"""What runs: flows and the command line."""
