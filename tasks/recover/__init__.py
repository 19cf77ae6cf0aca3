"""Training the pruned model on the selected rows."""
