"""Qwen3: queries and keys are normalised over head_dim."""

from __future__ import annotations

from resprout.tasks.models.families.family import Config, Family, Tensors, attention, ends, gated_ffn


def _attention(config: Config) -> Tensors:
    bias = bool(config.get("attention_bias"))
    return attention(config, qkv_bias=bias, out_bias=bias, qk_norm=True)


FAMILY = Family(
    "qwen3",
    attention=_attention,
    ffn=gated_ffn,
    ends=ends,
    attention_bias_key="attention_bias",
    defaults={"head_dim": 128},
)
