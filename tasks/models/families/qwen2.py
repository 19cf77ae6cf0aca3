"""Qwen2 and Qwen2.5: query, key and value have a bias."""

from __future__ import annotations

from resprout.tasks.models.families.family import Config, Family, Tensors, attention, ends, gated_ffn


def _attention(config: Config) -> Tensors:
    return attention(config, qkv_bias=True)


FAMILY = Family("qwen2", attention=_attention, ffn=gated_ffn, ends=ends)
