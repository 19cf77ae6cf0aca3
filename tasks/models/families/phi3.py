"""Phi-3: query, key and value in one projection, gate and up in another."""

from __future__ import annotations

from resprout.tasks.models.families.family import Config, Family, Tensors, ends, linear, rms_norm


def _attention(config: Config) -> Tensors:
    return {
        **linear("self_attn.qkv_proj", "query+key+value", "hidden"),
        **linear("self_attn.o_proj", "hidden", "query"),
        **rms_norm("input_layernorm"),
    }


def _ffn(config: Config) -> Tensors:
    return {
        **linear("mlp.gate_up_proj", "ffn+ffn", "hidden"),
        **linear("mlp.down_proj", "hidden", "ffn"),
        **rms_norm("post_attention_layernorm"),
    }


FAMILY = Family("phi3", attention=_attention, ffn=_ffn, ends=ends, gguf="phi3")
