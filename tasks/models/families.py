"""The model families that resprout prunes, and how each differs from the others; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput

LAYOUT_KEY = "resprout_layout"
"""Key of config.json that holds each layer's own widths where the layers of a model differ."""


@dataclass(frozen=True)
class Family:
    """What sets one `model_type` apart, as far as sizes and stock configs are concerned.

    `ffn_bias_key` and `attention_bias_key` are the config keys that give *all* projections of the FFN or
    of the attention a bias (None: the stock class cannot hold one); `qkv_bias` says that q, k, v always
    have one; `qk_norm` that q and k are normalised over `head_dim`; `heads_divide_hidden` that the stock
    config refuses a number of heads that does not divide the hidden size; `head_dim_default` stands where
    config.json names no head_dim (None: hidden size / heads).
    """

    model_type: str
    ffn_bias_key: str | None = None
    attention_bias_key: str | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    heads_divide_hidden: bool = False
    head_dim_default: int | None = None


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama", ffn_bias_key="mlp_bias", attention_bias_key="attention_bias", heads_divide_hidden=True
        ),
        Family("mistral"),
        Family("qwen2", qkv_bias=True),
        Family("qwen3", attention_bias_key="attention_bias", qk_norm=True, head_dim_default=128),
    )
}


def check_family(config_json: Mapping[str, Any]) -> Family:
    """The family of a model's config.json; an unsupported one, or quantised weights, raise BadInput."""
    model_type = str(config_json.get("model_type"))
    if model_type not in FAMILIES:
        raise BadInput(
            f"model_type '{model_type}' is not supported; supported are {', '.join(sorted(FAMILIES))}; to "
            "add a decoder with the same parts, add a row to tasks/models/families.py and, where its modules "
            "have other names, to tasks/models/anatomy.py"
        )
    quantised = config_json.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        raise BadInput(
            f"config.json has a quantization_config (quant_method {method}), and quantised weights cannot be "
            "pruned; give the unquantised model, in bfloat16, float16 or float32"
        )
    return FAMILIES[model_type]
