"""GPT-NeoX and Pythia: query, key and value interleaved by head; both sublayers read the layer's input."""

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
    bias = bool(config.get("attention_bias", True))
    return {
        **linear("attention.query_key_value", "qkv_by_head", "hidden", bias),
        **linear("attention.dense", "hidden", "query", bias),
        **layer_norm("input_layernorm"),
    }


def _ffn(config: Config) -> Tensors:
    return {
        **linear("mlp.dense_h_to_4h", "ffn", "hidden", bias=True),
        **linear("mlp.dense_4h_to_h", "hidden", "ffn", bias=True),
        **layer_norm("post_attention_layernorm"),
    }


def _ends(config: Config) -> Tensors:
    return {
        "gpt_neox.embed_in.weight": ("vocab", "hidden"),
        **layer_norm("gpt_neox.final_layer_norm"),
        **head(config),
    }


FAMILY = Family(
    "gpt_neox",
    attention=_attention,
    ffn=_ffn,
    ends=_ends,
    attention_reader="attention.dense",
    ffn_reader="mlp.dense_4h_to_h",
    attention_zeros=("attention",),
    decoder="gpt_neox",
    units=SHARED_HEADS,
    keys=Keys(kv_heads=None, head_dim=None),
    parallel_key="use_parallel_residual",
    defaults={"tie_word_embeddings": False},
    gguf="gptneox",
)
