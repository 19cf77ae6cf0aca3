"""Llama (Touvron et al., 2023): gated FFN, grouped queries, RMSNorm in front of each sublayer."""

from __future__ import annotations

from resprout.tasks.models.families.family import Config, Family, Tensors, attention, ends, gated_ffn


def _attention(config: Config) -> Tensors:
    bias = bool(config.get("attention_bias"))
    return attention(config, qkv_bias=bias, out_bias=bias)


def _ffn(config: Config) -> Tensors:
    return gated_ffn(config, bias=bool(config.get("mlp_bias")))


FAMILY = Family(
    "llama",
    attention=_attention,
    ffn=_ffn,
    ends=ends,
    attention_bias_key="attention_bias",
    ffn_bias_key="mlp_bias",
    heads_divide_hidden=True,
)
