"""Settings and tokenizers that llama.cpp cannot be told of, found without torch, gguf or weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.splits import split_of
from resprout.tasks.models.shape import Shape

ROTARY = "rope_parameters"
FULL, SLIDING = "full_attention", "sliding_attention"
NORMED_EXPERTS = {"qwen2_moe": False, "qwen3_moe": True}
"""Whether llama.cpp divides the weights of a token's experts by their sum, where a config can choose."""


def check_settings(shape: Shape, config: Mapping[str, Any]) -> None:
    """Raise BadInput where llama.cpp computes the family without something that this config asks for.

    A setting that config.json leaves out counts as fitting, until the whole config is known.
    """
    scale = config.get("query_pre_attn_scalar")
    if scale is not None and float(scale) != shape.head_dim:
        raise BadInput(
            f"config.json says query_pre_attn_scalar: {scale}, but llama.cpp divides by the root of the "
            f"{shape.head_dim} channels of a head; export hf instead"
        )
    normed = NORMED_EXPERTS.get(shape.model_type)
    if normed is not None and bool(config.get("norm_topk_prob", normed)) != normed:
        raise BadInput(
            f"llama.cpp computes {shape.model_type} as by norm_topk_prob: {str(normed).lower()}, and "
            "config.json says otherwise; export hf instead"
        )
    # Files of older transformers call it rope_scaling, and its type type.
    rotary = config.get(ROTARY) or config.get("rope_scaling") or {}
    rotary = rotary.get(FULL) or rotary.get(SLIDING) or rotary
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind not in ("default", "llama3", "linear", "yarn"):
        raise BadInput(
            f"the rotary embedding of config.json is scaled by '{kind}', which this export cannot state for "
            "llama.cpp; those that it can are linear, yarn and llama3: export hf instead"
        )


def check_tokenizer(described: Mapping[str, Any], rows: int) -> None:
    """Raise BadInput where llama.cpp has no such tokenizer, or the embeddings' rows are too few for it.

    `described` is the object of tokenizer.json.
    """
    model = described["model"]
    if model["type"] != "BPE":
        raise BadInput(
            f"a GGUF file cannot hold a tokenizer of type {model['type']}; llama.cpp reads byte-level BPE "
            "and SentencePiece's BPE: export hf instead"
        )
    last = max([*model["vocab"].values(), *(one["id"] for one in described["added_tokens"])], default=0)
    if last >= rows:
        raise BadInput(f"the tokenizer has token {last}, but the model's embeddings {rows} rows")
    if not model.get("byte_fallback"):
        split_of(described)
