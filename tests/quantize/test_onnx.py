"""ONNX as a format of quantize: models that a trace does not keep, and unknown types."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.models.shape import shape_of
from resprout.tasks.quantize.format import baselines, format_of
from resprout.tasks.quantize.stage import fits
from tiny_models import tiny_model


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
def test_windows_that_the_exporter_does_not_keep_are_refused_before_a_run(family: str) -> None:
    shape = shape_of(tiny_model(family).config.to_dict())
    asked = QuantizeConfig(formats=("onnx:F32",))
    with pytest.raises(BadInput, match=r"attends to windows of \d+ tokens, which transformers' exporter"):
        fits(asked, {"source": shape})
    fits(asked, {"source": replace(shape, config={**shape.config, "sliding_window": None})})


def test_a_layer_without_attention_is_refused() -> None:
    shape = shape_of(tiny_model("llama").config.to_dict())
    with pytest.raises(BadInput, match="layer 1 has no attention"):
        format_of("onnx:F16").check(shape.with_counts("kv_groups", (2, 0)))


def test_an_unknown_type_is_one_sentence() -> None:
    with pytest.raises(BadInput, match="'int8' is no type of ONNX file; give onnx:F32 or onnx:F16"):
        format_of("onnx:int8")


def test_the_dense_model_is_compared_in_whole_and_half_precision() -> None:
    assert baselines(["onnx:F32"], ["quantized"]) == ["onnx:F32", "onnx:F16"]
