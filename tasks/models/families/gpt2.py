"""GPT-2 (Radford et al., 2019): one fused projection, weights stored [inputs, outputs], learned positions."""

from __future__ import annotations

from resprout.tasks.models.families.family import (
    SHARED_HEADS,
    Config,
    Family,
    Keys,
    Tensors,
    conv1d,
    head,
    layer_norm,
)


def _attention(config: Config) -> Tensors:
    return {
        **conv1d("attn.c_attn", "query+key+value", "hidden"),
        **conv1d("attn.c_proj", "hidden", "query"),
        **layer_norm("ln_1"),
    }


def _ffn(config: Config) -> Tensors:
    return {
        **conv1d("mlp.c_fc", "ffn", "hidden"),
        **conv1d("mlp.c_proj", "hidden", "ffn"),
        **layer_norm("ln_2"),
    }


def _ends(config: Config) -> Tensors:
    return {
        "transformer.wte.weight": ("vocab", "hidden"),
        "transformer.wpe.weight": (config.get("n_positions", 1024), "hidden"),
        **layer_norm("transformer.ln_f"),
        **head(config),
    }


def _check(config: Config) -> str:
    return (
        "its layers attend to an encoder (add_cross_attention)" if config.get("add_cross_attention") else ""
    )


FAMILY = Family(
    "gpt2",
    attention=_attention,
    ffn=_ffn,
    ends=_ends,
    attention_reader="attn.c_proj",
    ffn_reader="mlp.c_proj",
    attention_zeros=("attn",),
    norms=lambda name: name.startswith("ln_"),
    head_counts={"attn.num_heads": "heads", "attn.split_size": "query"},
    decoder="transformer",
    layers="h",
    units=SHARED_HEADS,
    keys=Keys("n_embd", "n_layer", "n_head", None, None, "n_inner", (), "n_positions"),
    defaults={"tie_word_embeddings": True, "n_inner": None},
    transposed=True,
    numbered_key="scale_attn_by_inverse_layer_idx",
    check=_check,
    gguf="gpt2",
)
