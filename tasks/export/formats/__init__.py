"""Export formats, one a module; all keep the contract of tasks/export/format.py."""
