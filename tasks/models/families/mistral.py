"""Mistral: Llama's tensors without any bias."""

from __future__ import annotations

from resprout.tasks.models.families.family import Family, attention, ends, gated_ffn

FAMILY = Family("mistral", attention=attention, ffn=gated_ffn, ends=ends, gguf="llama", rotary_pairs=True)
