"""Allocators, one a module; all keep the contract of tasks/prune/contracts.py and import no torch."""
