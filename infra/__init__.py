"""Artifact store, MLflow, Prefect, provenance and retention, on which the flows stand."""
