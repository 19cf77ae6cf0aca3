"""Choosing the samples that pruning looks at."""
