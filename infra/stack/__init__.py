"""The one-machine stack: Prefect server, MLflow server, worker and relay on loopback, under a supervisor."""
