"""Audit: lineage of a model, descendants of a source, comparison, and checks of all that is registered."""
