"""Allocators, one a module; all keep the contract of tasks/prune/contracts.py, and those that do not try the
model import no torch.
"""
