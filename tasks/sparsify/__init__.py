"""Semi-structured sparsity of the final model, layer by layer."""
