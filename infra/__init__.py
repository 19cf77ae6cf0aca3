"""What the flows stand on: artifact store, tracking, lineage."""
