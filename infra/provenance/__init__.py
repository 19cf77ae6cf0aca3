"""Provenance that does not rest on trust: signed statements, seals, ledgers, the state of MLflow."""
