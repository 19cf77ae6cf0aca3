"""What is asked of MLflow: runs, experiments, the registry, and what its errors mean."""
