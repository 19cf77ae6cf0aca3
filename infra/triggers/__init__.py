"""Registry triggers: what the model registry holds is compared with what was started, and started once."""
