"""What is kept and for how long: garbage collection, legal holds, erasure, backup and restore."""
