"""How formats are named in a config and on the command line: each in one spelling, and each once."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from pydantic import AfterValidator

WITH_TYPES = {
    "gguf": "gguf:Q4_K_M",
    "compressed-tensors": "compressed-tensors:W4A16",
    "onnx": "onnx:F32",
    "torchao": "torchao:INT8",
}
"""Formats that are made in one of their types, each with an example."""


def spelled(name: str) -> str:
    """The name with its type in upper case, as all types are; ValueError where a type is lacking."""
    form, _, kind = name.partition(":")
    if kind:
        return f"{form}:{kind.upper()}"
    if form in WITH_TYPES:
        raise ValueError(
            f"{form} is made by quantize in one of its types; give it with its type, say {WITH_TYPES[form]}"
        )
    return form


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice; name each format once")
    return names


FormatName = Annotated[str, AfterValidator(spelled)]
FormatNames = Annotated[tuple[FormatName, ...], AfterValidator(_each_once)]
