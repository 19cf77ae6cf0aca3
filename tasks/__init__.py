"""What is done: one room a stage."""
