"""Choosing the samples that pruning computes with."""
