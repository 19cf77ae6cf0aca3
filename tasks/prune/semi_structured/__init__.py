"""Semi-structured sparsity: n of every m consecutive weights of a row stay, which GPUs multiply faster."""
