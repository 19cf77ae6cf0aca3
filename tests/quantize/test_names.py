"""Which model a file is held against, by names alone."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.tasks.quantize.names import base_of, judged

SAME, SMALLER, SOURCE = "dense gguf:Q4_0", "dense gguf:Q2_K", "source file"
TENSORS = "compressed-tensors:W8A16"


@pytest.mark.parametrize(
    ("name", "names", "base"),
    [
        ("gguf:Q4_0", ["dense", SAME, SOURCE], SOURCE),
        (SMALLER, ["dense", SAME, SOURCE], SOURCE),
        ("gguf:Q4_0", ["dense", SAME], SAME),
        ("gguf:Q4_0", ["dense", SMALLER], None),
        (SAME, ["dense", SAME], None),
        (SOURCE, ["dense", SOURCE], None),
        ("recovered", ["dense", SAME, SOURCE], "dense"),
        ("dense", ["dense", SOURCE], None),
        (TENSORS, ["dense", SOURCE], "dense"),
        ("onnx:F32", ["dense", "dense onnx:F32", SOURCE], "dense onnx:F32"),
        ("onnx:F16", ["dense", "dense onnx:F32", SOURCE], None),
        (TENSORS, ["dense", f"dense {TENSORS}"], f"dense {TENSORS}"),
    ],
)  # fmt: skip
def test_a_file_is_held_against_one_of_its_own_program(name: str, names: list[str], base: str | None) -> None:
    assert base_of(name, [name, *names]) == base


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantize": None}, None),
        ({"quantize": {"formats": ["gguf:Q8_0", "gguf:Q4_0"]}, "gate": None}, "gguf:Q8_0"),
        ({"quantize": {"formats": ["gguf:Q8_0", "gguf:Q4_0"]}, "gate": {"of": "gguf:Q4_0"}}, "gguf:Q4_0"),
    ],
)
def test_the_verdict_is_about_the_file_of_the_gate_or_the_first(
    config: dict[str, Any], name: str | None
) -> None:
    assert judged(config) == name
