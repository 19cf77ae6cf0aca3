"""The model version that a passed gate makes."""
