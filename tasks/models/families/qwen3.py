"""Qwen3: queries and keys are normalised over head_dim."""

from __future__ import annotations

from functools import partial

from resprout.tasks.models.families.family import Family, attention, ends, gated_ffn

FAMILY = Family(
    "qwen3",
    attention=partial(attention, bias_key="attention_bias", qk_norm=True),
    ffn=gated_ffn,
    ends=ends,
    attention_bias_key="attention_bias",
    defaults={"head_dim": 128},
    gguf="qwen3",
)
