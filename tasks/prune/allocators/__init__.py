"""Allocators, one a module; all keep the interface in tasks/prune/interfaces.py.

Those that do not run the model import no torch.
"""
