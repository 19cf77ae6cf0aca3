"""One module a place that models and data come from."""
