"""The last model as a draft: what it proposes, the dense model checks."""
