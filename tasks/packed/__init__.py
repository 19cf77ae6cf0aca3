"""Checkpoints of few bits that transformers reads with a library: what all such libraries have in common."""
