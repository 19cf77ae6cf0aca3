"""Checkpoints in few bits as the library compressed-tensors writes and reads them."""
