"""Types of ONNX files: float32 and float16, which ONNX Runtime computes everywhere."""

from __future__ import annotations

from resprout.configs.errors import BadInput

TYPES = {"F32": "float32", "F16": "float16"}
"""Names of the types, each with torch's."""


def onnx_type(name: str) -> str:
    """The type of this name in any case; others raise BadInput."""
    if name.upper() not in TYPES:
        raise BadInput(f"'{name}' is no type of ONNX file; give onnx:{' or onnx:'.join(TYPES)}")
    return name.upper()
