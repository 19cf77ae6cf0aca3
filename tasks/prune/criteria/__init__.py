"""Criteria, one a module; all keep the interface of tasks/prune/interfaces.py."""
