"""OPT (Zhang et al., 2022): biases, LayerNorm, learned positions after two unused rows, FFN without gate."""

from __future__ import annotations

from resprout.tasks.models.families.family import (
    SHARED_HEADS,
    Config,
    Family,
    Keys,
    Tensors,
    head,
    layer_norm,
    linear,
)


def _attention(config: Config) -> Tensors:
    return {
        **linear("self_attn.q_proj", "query", "hidden", bias=True),
        **linear("self_attn.k_proj", "key", "hidden", bias=True),
        **linear("self_attn.v_proj", "value", "hidden", bias=True),
        **linear("self_attn.out_proj", "hidden", "query", bias=True),
        **layer_norm("self_attn_layer_norm"),
    }


def _ffn(config: Config) -> Tensors:
    return {
        **linear("fc1", "ffn", "hidden", bias=True),
        **linear("fc2", "hidden", "ffn", bias=True),
        **layer_norm("final_layer_norm"),
    }


def _ends(config: Config) -> Tensors:
    return {
        "model.decoder.embed_tokens.weight": ("vocab", "hidden"),
        "model.decoder.embed_positions.weight": (config["max_position_embeddings"] + 2, "hidden"),
        **layer_norm("model.decoder.final_layer_norm"),
        **head(config),
    }


def _check(config: Config) -> str:
    if config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]:
        return "its embeddings are narrower than its layers (word_embed_proj_dim)"
    if not config.get("do_layer_norm_before", True) or not config.get("enable_bias", True):
        return "its layers have the norm behind them, or no biases"
    return ""


FAMILY = Family(
    "opt",
    attention=_attention,
    ffn=_ffn,
    ends=_ends,
    attention_reader="self_attn.out_proj",
    ffn_reader="fc2",
    ffn_zeros=("fc1", "fc2"),
    head_counts={"self_attn.num_heads": "heads"},
    decoder="model.decoder",
    units=SHARED_HEADS,
    keys=Keys(kv_heads=None, head_dim=None, ffn="ffn_dim"),
    defaults={"tie_word_embeddings": True},
    check=_check,
)
