"""MLflow: runs, experiments, the model registry, searches, errors."""
