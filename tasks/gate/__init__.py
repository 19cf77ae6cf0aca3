"""Bounds on the compressed model relative to the dense one."""
