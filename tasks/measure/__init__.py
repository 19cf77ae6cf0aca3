"""Speed and memory of a model, each measured in a process of its own."""
