"""The webhook relay: what happens in the model registry becomes flow runs, each once."""
