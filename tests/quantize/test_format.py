"""Formats of few bits by their names: what they are compared with, and rows that their blocks do not fill."""

from __future__ import annotations

from resprout.tasks.models.shape import shape_of
from resprout.tasks.quantize.format import baselines, misfits
from tiny_models import tiny_model


def test_the_dense_model_is_compared_in_the_same_and_in_fewer_bits() -> None:
    assert baselines(["gguf:Q6_K"], ["quantized"]) == [
        "gguf:Q6_K", "gguf:Q5_K_M", "gguf:Q5_K_M:Q5_0", "gguf:Q4_K_M:Q5_0"
    ]  # fmt: skip
    assert baselines(["gguf:Q4_0"], ["source_file", "quantized", "gguf:Q5_0"]) == [
        "gguf:Q4_0", "gguf:Q4_0:Q5_0", "gguf:Q3_K_M:Q5_0", "gguf:Q2_K:Q5_0", "gguf:Q5_0"
    ]  # fmt: skip
    assert baselines(["gguf:Q2_K"], ["quantized"]) == ["gguf:Q2_K", "gguf:Q2_K:Q5_0"]
    assert baselines(["gguf:Q4_0"], ["source_file"]) == []


def test_a_type_whose_blocks_do_not_fill_the_rows_is_warned_of() -> None:
    # Rows of 64 (hidden size, 4 heads of 16) and 128 (FFN).
    shape = shape_of(tiny_model("llama").config.to_dict())
    assert misfits(["gguf:Q4_0", "gguf:F16"], shape) == []
    (said,) = misfits(["gguf:Q4_K_M", "gguf:Q8_0"], shape)
    assert said.startswith(
        "gguf:Q4_K_M takes 256 weights of a row together, which does not divide the hidden size 64, heads of "
        "64, FFN widths of 128: llama.cpp"
    )
    (said,) = misfits(["gguf:Q8_0"], shape.with_counts("ffn", (120, 128)))
    assert said.startswith(
        "gguf:Q8_0 takes 32 weights of a row together, which does not divide FFN widths of 120: llama.cpp"
    )
