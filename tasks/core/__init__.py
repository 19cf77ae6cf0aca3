"""What every stage is built from: declaration, cache key, job, run, methods, costs, its log in MLflow."""
