"""Checkpoints of 8-bit integers as torchao makes them and transformers reads them."""
