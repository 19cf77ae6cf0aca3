"""How large a model is: counted on the model itself, or worked out from its config.json without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.tasks.models.families import FAMILIES, LAYOUT_KEY, check_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Sizes:
    """Unique parameters (a tied tensor once), those outside embeddings and head, and bytes of the weights."""

    params: int
    non_embedding_params: int
    bytes: int


@dataclass(frozen=True)
class Shape:
    """All widths of a decoder; `ffn` and `kv_heads` hold one number for each layer."""

    model_type: str
    hidden: int
    vocab: int
    head_dim: int
    heads_per_group: int
    ffn: tuple[int, ...]
    kv_heads: tuple[int, ...]
    tied: bool
    max_positions: int
    ffn_bias: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    qk_norm: bool = False

    @property
    def layers(self) -> int:
        return len(self.ffn)

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads of each layer."""
        return tuple(groups * self.heads_per_group for groups in self.kv_heads)

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same widths."""
        return len(set(self.ffn)) == 1 and len(set(self.kv_heads)) == 1

    @property
    def stock(self) -> bool:
        """Whether the family's stock config can state these widths."""
        restricted = FAMILIES[self.model_type].heads_divide_hidden
        return self.uniform and (not restricted or self.hidden % self.heads[0] == 0)

    @property
    def params_per_channel(self) -> int:
        """Parameters that leave with one FFN channel: a row of gate and of up, a column of down."""
        return 3 * self.hidden + 2 * self.ffn_bias

    @property
    def params_per_group(self) -> int:
        """Parameters that leave with one KV group: rows of q, k and v, columns of o."""
        query = self.heads_per_group * self.head_dim
        return query * self.hidden + (query + 2 * self.head_dim) * (self.hidden + self.qkv_bias)

    @property
    def fixed_params_per_layer(self) -> int:
        """Parameters of a layer that no unit owns: norms and the biases of o and down."""
        return self.hidden * (2 + self.ffn_bias + self.attention_out_bias) + 2 * self.head_dim * self.qk_norm

    @property
    def embedding_params(self) -> int:
        """Token embeddings, and the head where it is not tied to them."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def non_embedding_params(self) -> int:
        """All parameters but `embedding_params`."""
        return (
            sum(self.ffn) * self.params_per_channel
            + sum(self.kv_heads) * self.params_per_group
            + self.layers * self.fixed_params_per_layer
            + self.hidden
        )

    @property
    def params(self) -> int:
        """Unique parameters."""
        return self.embedding_params + self.non_embedding_params

    def sizes(self, dtype: str) -> Sizes:
        """The sizes with all weights in `dtype`."""
        return Sizes(self.params, self.non_embedding_params, self.params * BYTES[dtype])


def shape_of(source: Path | Mapping[str, Any]) -> Shape:
    """The shape of the model in a folder, or of a config.json given as a dict; reads no weights.

    An unsupported family, or a config.json that lacks a width, raises BadInput.
    """
    if isinstance(source, Path):
        path = source / "config.json"
        if not path.is_file():
            raise BadInput(f"{source} is no model folder: it has no config.json")
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        config = source
    family = check_family(config)
    needed = ("hidden_size", "vocab_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    missing = [key for key in needed if not config.get(key)]
    if missing:
        raise BadInput(f"config.json of the {family.model_type} model lacks {', '.join(missing)}")
    hidden, heads, layers = (int(config[key]) for key in ("hidden_size", "num_attention_heads", needed[3]))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    layout = config.get(LAYOUT_KEY)
    attention_bias = bool(family.attention_bias_key and config.get(family.attention_bias_key))
    return Shape(
        model_type=family.model_type,
        hidden=hidden,
        vocab=int(config["vocab_size"]),
        head_dim=int(config.get("head_dim") or family.head_dim_default or hidden // heads),
        heads_per_group=heads // kv_heads,
        ffn=tuple(layout["intermediate_size"] if layout else [int(config["intermediate_size"])] * layers),
        kv_heads=tuple(layout["num_key_value_heads"] if layout else [kv_heads] * layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings") or 0),
        ffn_bias=bool(family.ffn_bias_key and config.get(family.ffn_bias_key)),
        qkv_bias=family.qkv_bias or attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=family.qk_norm,
    )


def count(model: PreTrainedModel) -> Sizes:
    """The sizes of a model in memory, each tensor counted once however often it is used."""
    unique = {id(parameter): parameter for parameter in model.parameters()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding = {id(end.weight) for end in ends if end is not None}
    return Sizes(
        params=sum(parameter.numel() for parameter in unique.values()),
        non_embedding_params=sum(p.numel() for key, p in unique.items() if key not in embedding),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in unique.values()),
    )
