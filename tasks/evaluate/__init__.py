"""Scores of a model: perplexity, divergence from the dense model, zero-shot accuracies, size."""
