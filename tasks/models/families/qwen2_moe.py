"""Qwen1.5-MoE and Qwen2-MoE: biases on query, key and value, and a shared expert that every token passes."""

from __future__ import annotations

from resprout.tasks.models.families.family import (
    SPARSE,
    Config,
    Family,
    Keys,
    Tensors,
    attention,
    ends,
    experts,
    linear,
)
from resprout.tasks.models.families.qwen3_moe import check


def _attention(config: Config) -> Tensors:
    return attention(config, qkv_bias=bool(config.get("qkv_bias", True)))


def _ffn(config: Config) -> Tensors:
    shared = config["shared_expert_intermediate_size"]
    return {
        **experts(config),
        **linear("mlp.shared_expert.gate_proj", shared, "hidden"),
        **linear("mlp.shared_expert.up_proj", shared, "hidden"),
        **linear("mlp.shared_expert.down_proj", "hidden", shared),
        **linear("mlp.shared_expert_gate", 1, "hidden"),
    }


FAMILY = Family(
    "qwen2_moe",
    attention=_attention,
    ffn=_ffn,
    ends=ends,
    ffn_reader="",
    units=SPARSE,
    keys=Keys(ffn="moe_intermediate_size", experts=("num_experts",)),
    check=check,
    gguf="qwen2moe",
)
