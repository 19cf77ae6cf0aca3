"""Files of few bits out of the final model."""
