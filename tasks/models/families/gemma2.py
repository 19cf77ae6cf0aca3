"""Gemma 2: a norm on both sides of each sublayer, weights stored less 1, embeddings scaled by the width."""

from __future__ import annotations

from resprout.tasks.models.families.family import (
    SCALED,
    Config,
    Family,
    Tensors,
    attention,
    ends,
    gated_ffn,
    rms_norm,
)


def _attention(config: Config) -> Tensors:
    return {**attention(config, "attention_bias"), **rms_norm("post_attention_layernorm")}


def ffn(config: Config) -> Tensors:
    """The gated FFN between its two norms."""
    between = {**rms_norm("pre_feedforward_layernorm"), **rms_norm("post_feedforward_layernorm")}
    projections = {name: axes for name, axes in gated_ffn(config).items() if name.startswith("mlp.")}
    return {**projections, **between}


FAMILY = Family(
    "gemma2",
    attention=_attention,
    ffn=ffn,
    ends=ends,
    attention_bias_key="attention_bias",
    norm_offset=1.0,
    units=SCALED,
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    gguf="gemma2",
)
