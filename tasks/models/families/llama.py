"""Llama (Touvron et al., 2023): gated FFN, grouped queries, RMSNorm in front of each sublayer."""

from __future__ import annotations

from functools import partial

from resprout.tasks.models.families.family import Family, attention, ends, gated_ffn

FAMILY = Family(
    "llama",
    attention=partial(attention, bias_key="attention_bias"),
    ffn=partial(gated_ffn, bias_key="mlp_bias"),
    ends=ends,
    attention_bias_key="attention_bias",
    ffn_bias_key="mlp_bias",
    heads_divide_hidden=True,
    gguf="llama",
    rotary_pairs=True,
)
