"""Blocks of formats of few bits, and the widths that prune.round_to: auto takes for them."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.configs.blocks import block_of, multiple_of
from resprout.configs.schema import RunConfig
from tiny_run import config


def test_blocks_of_types() -> None:
    names = ("gguf:q4_k_m", "gguf:Q8_0", "gguf:iq4_nl", "gguf:IQ4_XS", "gguf:F16")
    assert [block_of(name) for name in names] == [256, 32, 32, 256, 1]
    others = ("compressed-tensors:W4A16", "compressed-tensors:W4A16-G64", "compressed-tensors:W8A8")
    assert [block_of(name) for name in others] == [128, 64, 1]
    assert block_of("torchao:INT8-DYNAMIC") == 1


def test_widths_hold_all_formats_that_are_asked_for() -> None:
    assert multiple_of(["gguf:Q8_0"]) == 32
    assert multiple_of(["gguf:Q8_0", "gguf:Q4_K_M"]) == 256
    assert multiple_of(["gguf:Q4_0", "compressed-tensors:W4A16-G64"]) == 64
    assert multiple_of(["gguf:F16"]) is multiple_of([]) is None


@pytest.mark.parametrize(
    ("given", "wanted"), [({"formats": ["gguf:Q4_0"]}, 32), ({"formats": ["gguf:Q4_K_M"]}, 256), (None, 128)]
)
def test_auto_is_resolved_where_a_config_is_read(given: Any, wanted: int) -> None:
    prune = {**config()["prune"], "round_to": "auto"}
    assert RunConfig.model_validate(config(prune=prune, quantize=given)).prune.round_to == wanted
