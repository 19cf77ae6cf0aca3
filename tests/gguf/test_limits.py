"""Limits of llama.cpp that show in config.json and tokenizer.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.limits import check_settings, check_tokenizer
from resprout.tasks.models.shape import shape_of
from tiny_models import tiny_model

BYTES = {"type": "ByteLevel", "use_regex": True}


def described(rows: int = 8, split: Mapping[str, Any] | None = BYTES, **model: Any) -> dict[str, Any]:
    vocab = {f"t{at}": at for at in range(rows)}
    return {"model": {"type": "BPE", "vocab": vocab, **model}, "added_tokens": [], "pre_tokenizer": split}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (described(type="WordLevel"), "cannot hold a tokenizer of type WordLevel"),
        (described(type="Unigram", vocab=[["a", 0.0]]), "cannot hold a tokenizer of type Unigram"),
        (described(9), "has token 8, but the model's embeddings 8 rows"),
        (described() | {"added_tokens": [{"id": 11}]}, "has token 11, but the model's embeddings 8 rows"),
        (described(split={"type": "Whitespace"}), r"no name here for llama.cpp \(Whitespace\)"),
        (described(split={"type": "Whitespace"}, byte_fallback=True), None),
        (described(), None),
    ],
)
def test_tokenizers(given: dict[str, Any], expected: str | None) -> None:
    if expected is None:
        check_tokenizer(given, 8)
        return
    with pytest.raises(BadInput, match=expected):
        check_tokenizer(given, 8)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar: 256"),
        ("gemma2", {"query_pre_attn_scalar": 16}, None),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob: true"),
        ("qwen3_moe", {}, None),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by 'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "scaled by 'longrope'"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "ntk"}}}, "scaled by 'ntk'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, None),
    ],
)
def test_settings(family: str, settings: dict[str, Any], expected: str | None) -> None:
    shape = shape_of(tiny_model(family).config.to_dict())
    if expected is None:
        check_settings(shape, settings)
        return
    with pytest.raises(BadInput, match=expected):
        check_settings(shape, settings)
