"""Names of a run's files of few bits, and the model that each is held against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

DENSE, SOURCE_FILE = "dense", "source file"
"""Names of the dense model, which begin those of its files, and of the file that the run began with."""
LLAMA_CPP, TRANSFORMERS = "llama.cpp", "transformers"
PROGRAMS = {"gguf": LLAMA_CPP, "onnx": "ONNX Runtime"}
"""The program that serves a format; transformers serves all others."""


def file_of(name: str) -> str:
    """Name of the artifact that holds the file, beside its scores, which are called as it is."""
    return f"{name} file"


def scores_of(name: str) -> str:
    """Role in which a stage reads the scores of the file, whose name is that of the file itself."""
    return f"scores of {name}"


def program_of(name: str) -> str:
    """The program that evaluates, times and serves the model of this name."""
    if name == SOURCE_FILE:
        return LLAMA_CPP
    return PROGRAMS.get(name.removeprefix(f"{DENSE} ").partition(":")[0], TRANSFORMERS)


def base_of(name: str, names: Collection[str]) -> str | None:
    """The one of `names` against which a model's size and speed are held; None where there is none.

    That is the source file for what llama.cpp serves, else the dense model in the same format, else the dense
    model itself for what transformers serves: never a model in another program.
    """
    if name in (DENSE, SOURCE_FILE):
        return None
    program = program_of(name)
    if program == LLAMA_CPP and SOURCE_FILE in names:
        return SOURCE_FILE
    if f"{DENSE} {name}" in names:
        return f"{DENSE} {name}"
    return DENSE if program == TRANSFORMERS and DENSE in names else None


def judged(config: Mapping[str, Any]) -> str | None:
    """The file that the verdict is about: the gate's, else the first; None of a run that makes none."""
    section = config.get("quantize")
    if not section:
        return None
    named: str | None = (config.get("gate") or {}).get("of")
    return named or str(section["formats"][0])
