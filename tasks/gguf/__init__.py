"""GGUF files of a model folder: what llama.cpp calls its family, tensors, hyperparameters and tokenizer."""
