"""ONNX Runtime: the graph of a model, a session on it, and a model as transformers calls one."""
