"""Names of formats: one spelling, each once, and a type where there are types."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from resprout.configs.formats import WITH_TYPES, spelled
from resprout.configs.schema import RunConfig
from resprout.tasks.quantize.format import FORMATS, format_of
from tiny_run import config

TWO = ["gguf:Q8_0", "gguf:q4_0"]


def test_every_format_with_types_is_known_here_by_an_example_and_its_types_are_in_upper_case() -> None:
    assert WITH_TYPES.keys() == {one.name for one in FORMATS}
    for one in FORMATS:
        assert [spelled(f"{one.name}:{kind.lower()}") for kind in one.declared["types"]] == [
            f"{one.name}:{kind}" for kind in one.declared["types"]
        ]
        format_of(WITH_TYPES[one.name])


def test_every_key_has_the_one_spelling() -> None:
    found = RunConfig.model_validate(
        config(
            quantize={"formats": ["gguf:q4_k_m", "compressed-tensors:w4a16-g32"]},
            compare={"baselines": ["quantized", "gguf:q2_k"]},
            gate={"of": "gguf:Q4_k_M", "max_params_ratio": 1.0},
            export={**config()["export"], "formats": ["hf", "gguf:q4_k_m"]},
            push={"to": "hf://org/name", "formats": ["gguf:Q4_K_m"]},
        )
    )
    assert found.quantize is not None and found.compare is not None  # noqa: PT018
    assert found.gate is not None and found.push is not None  # noqa: PT018
    assert found.quantize.formats == ("gguf:Q4_K_M", "compressed-tensors:W4A16-G32")
    assert found.compare.baselines == ("quantized", "gguf:Q2_K")
    assert (found.gate.of, found.push.formats) == ("gguf:Q4_K_M", ("gguf:Q4_K_M",))
    assert found.export.formats == ("hf", "gguf:Q4_K_M")


@pytest.mark.parametrize(
    ("changes", "key", "sentence"),
    [
        (
            {"quantize": {"formats": ["gguf:Q8_0", "gguf:q8_0"]}},
            ("quantize", "formats"),
            "gguf:Q8_0 is named",
        ),
        (
            {"quantize": {"formats": TWO}, "compare": {"baselines": ["gguf:Q2_K", "gguf:q2_k"]}},
            ("compare", "baselines"),
            "gguf:Q2_K is named twice; name each format once",
        ),
        ({"export": {"formats": ["hf", "hf"]}}, ("export", "formats"), "hf is named twice"),
        (
            {"push": {"to": "hf://org/name", "formats": ["hf", "hf"]}},
            ("push", "formats"),
            "hf is named twice",
        ),
        ({"quantize": {"formats": ["gguf"]}}, ("quantize", "formats", 0), "its type, say gguf:Q4_K_M"),
        ({"quantize": {"formats": ["torchao:"]}}, ("quantize", "formats", 0), "its type, say torchao:INT8"),
        (
            {"quantize": {"formats": ["compressed-tensors"]}},
            ("quantize", "formats", 0),
            "its type, say compressed-tensors:W4A16",
        ),
        ({"export": {"formats": ["onnx"]}}, ("export", "formats", 0), "its type, say onnx:F32"),
        (
            {"quantize": {"formats": TWO}, "gate": {"of": "gguf", "max_params_ratio": 1.0}},
            ("gate", "of"),
            "its type, say gguf:Q4_K_M",
        ),
        (
            {"quantize": {"formats": TWO}, "compare": {"baselines": ["gguf"]}},
            ("compare", "baselines", 0),
            "its type, say gguf:Q4_K_M",
        ),
    ],
)
def test_a_name_twice_or_without_its_type_is_refused_under_its_own_key(
    changes: dict[str, Any], key: tuple[str | int, ...], sentence: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        RunConfig.model_validate(config(**changes))
    (fault,) = refused.value.errors()
    assert fault["loc"] == key
    assert sentence in fault["msg"]
