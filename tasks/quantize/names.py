"""Names of a run's files of few bits, and the model that each is held against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

DENSE, SOURCE_FILE = "dense", "source file"
"""Names of the dense model, which begin those of its files, and of the file that the run began with."""
LLAMA_CPP = "gguf"
"""The format that llama.cpp serves."""


def file_of(name: str) -> str:
    """Name of the artifact that holds the file, beside its scores, which are called as it is."""
    return f"{name} file"


def scores_of(name: str) -> str:
    """Role in which a stage reads the scores of the file, whose name is that of the file itself."""
    return f"scores of {name}"


def served_by_llama_cpp(name: str) -> bool:
    """Whether the model of this name is a file in llama.cpp."""
    return name == SOURCE_FILE or name.removeprefix(f"{DENSE} ").startswith(LLAMA_CPP)


def base_of(name: str, names: Collection[str]) -> str | None:
    """The one of `names` against which a model's size and speed are held; None where there is none.

    A file in llama.cpp is held against the source file, or where that is not there against the dense model in
    the same format, never against a model in another runtime. All others are held against the dense model,
    in the same format where it is there.
    """
    if name in (DENSE, SOURCE_FILE):
        return None
    if served_by_llama_cpp(name) and SOURCE_FILE in names:
        return SOURCE_FILE
    if f"{DENSE} {name}" in names:
        return f"{DENSE} {name}"
    return None if served_by_llama_cpp(name) or DENSE not in names else DENSE


def judged(config: Mapping[str, Any]) -> str | None:
    """The file that the verdict is about: the gate's, else the first; None of a run that makes none."""
    section = config.get("quantize")
    if not section:
        return None
    named: str | None = (config.get("gate") or {}).get("of")
    return named or str(section["formats"][0])
