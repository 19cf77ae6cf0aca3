"""Building blocks of all stages: declaration, cache key, job, run, methods, cost, MLflow log."""
