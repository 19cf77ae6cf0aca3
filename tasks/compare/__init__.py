"""Two artifacts of one stage: which files differ, and by how much."""
