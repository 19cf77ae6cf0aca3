"""Retention: garbage collection, legal holds, erasure, backup and restore."""
