"""Settings and tokenizers that llama.cpp cannot be told of, found without torch, gguf or weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.models.shape import Shape

ROTARY = "rope_parameters"
FULL, SLIDING = "full_attention", "sliding_attention"
NORMED_EXPERTS = {"qwen2_moe": False, "qwen3_moe": True}
"""Whether llama.cpp divides the weights of a token's experts by their sum, where a config can choose."""
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    "llama-bpe": (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}",),
    "smollm": ("digits", "bytes"),
    "gpt-2": ("bytes",),
}
"""How text is split before byte-level BPE, by llama.cpp's name: expressions, single digits, GPT-2's way."""


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
        split_of(described["pre_tokenizer"])


def split_of(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for how text is split; BadInput where there is none."""
    found = []
    for part in parts_of(pre_tokenizer, "pretokenizers"):
        if part["type"] == "ByteLevel":
            found += ["bytes"] if part.get("use_regex", True) else []
        elif part["type"] == "Digits" and part.get("individual_digits"):
            found.append("digits")
        elif part["type"] == "Split":
            found.append(str(part["pattern"].get("Regex") or part["pattern"].get("String")))
        else:
            found.append(str(part["type"]))
    for name, parts in SPLITS.items():
        if tuple(found) == parts:
            return name
    raise BadInput(
        f"the tokenizer splits text in a way that has no name here for llama.cpp ({', '.join(found)[:200]}); "
        "export hf instead"
    )


def parts_of(described: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The parts of a sequence in tokenizer.json, or the one part that there is."""
    if described is None:
        return []
    return list(described[name]) if described["type"] == "Sequence" else [described]
