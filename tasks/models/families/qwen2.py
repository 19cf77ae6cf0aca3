"""Qwen2 and Qwen2.5: query, key and value have a bias."""

from __future__ import annotations

from functools import partial

from resprout.tasks.models.families.family import Family, attention, ends, gated_ffn

FAMILY = Family("qwen2", attention=partial(attention, qkv_bias=True), ffn=gated_ffn, ends=ends, gguf="qwen2")
