"""One method a module; each is found by its file."""
