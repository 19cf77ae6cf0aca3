"""Infrastructure: artifact store, tracking, lineage, servers."""
