"""Quantised formats, one a module; all keep the contract of tasks/quantize/format.py."""
