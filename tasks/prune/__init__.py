"""Structured pruning: score, allocate, plan, apply, repair."""
