"""Qwen3 with experts: queries and keys normalised over head_dim, experts in every layer."""

from __future__ import annotations

from functools import partial

from resprout.tasks.models.families.family import SPARSE, Config, Family, Keys, attention, ends, experts


def check(config: Config) -> str:
    """Return why some layers have no experts; empty where all have."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "some of its layers have no experts (mlp_only_layers, decoder_sparse_step)"
    return ""


FAMILY = Family(
    "qwen3_moe",
    attention=partial(attention, bias_key="attention_bias", qk_norm=True),
    ffn=experts,
    ends=ends,
    ffn_reader="",
    units=SPARSE,
    keys=Keys(ffn="moe_intermediate_size", experts=("num_experts", "num_local_experts")),
    attention_bias_key="attention_bias",
    defaults={"num_key_value_heads": 4},
    check=check,
    gguf="qwen3moe",
)
