"""Models and data from wherever they are, pinned before they are brought."""
