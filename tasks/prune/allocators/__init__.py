"""Allocators, one a module; all keep the interface of tasks/prune/interfaces.py, and those that do not try the
model import no torch.
"""
