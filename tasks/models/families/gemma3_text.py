"""Gemma 3, the text model: Gemma 2 with queries and keys normalised over head_dim."""

from __future__ import annotations

from resprout.tasks.models.families.family import SCALED, Config, Family, Tensors, attention, ends, rms_norm
from resprout.tasks.models.families.gemma2 import ffn


def _attention(config: Config) -> Tensors:
    projections = attention(config, "attention_bias", qk_norm=True)
    return {**projections, **rms_norm("post_attention_layernorm")}


FAMILY = Family(
    "gemma3_text",
    attention=_attention,
    ffn=ffn,
    ends=ends,
    attention_bias_key="attention_bias",
    norm_offset=1.0,
    units=SCALED,
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    gguf="gemma3",
)
