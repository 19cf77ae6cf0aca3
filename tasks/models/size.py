"""How large a model is: counted on the model itself, or worked out from its config.json without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.tasks.models.config_json import read_config
from resprout.tasks.models.families import FAMILIES, LAYOUT_KEY, check_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

NEEDED = ("hidden_size", "vocab_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
LAYOUT_LISTS = ("intermediate_size", "num_key_value_heads")


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

    An unsupported family, quantised weights, or a config.json whose widths are not there or are no whole
    numbers raise BadInput.
    """
    config = read_config(source) if isinstance(source, Path) else source
    family = check_family(config)
    missing = [key for key in NEEDED if not config.get(key)]
    if missing:
        raise BadInput(
            f"config.json of the {family.model_type} model lacks {', '.join(missing)}; take the config that "
            "came with the weights"
        )
    for key in (*NEEDED, *OPTIONAL):
        if config.get(key) is not None and not _is_width(config[key]):
            raise BadInput(
                f"config.json says {key}: {config[key]!r}, expected a whole number from 1; take the config "
                "that came with the weights"
            )
    hidden, heads, layers = (config[key] for key in ("hidden_size", "num_attention_heads", NEEDED[3]))
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise BadInput(
            f"config.json says num_attention_heads: {heads}, which num_key_value_heads: {kv_heads} does not "
            "divide; take the config that came with the weights"
        )
    layout = config.get(LAYOUT_KEY)
    ffn, groups = (config["intermediate_size"],) * layers, (kv_heads,) * layers
    if layout is not None:
        ffn, groups = layout_widths(layout, layers)
    attention_bias = bool(family.attention_bias_key and config.get(family.attention_bias_key))
    return Shape(
        model_type=family.model_type,
        hidden=hidden,
        vocab=config["vocab_size"],
        head_dim=config.get("head_dim") or family.head_dim_default or hidden // heads,
        heads_per_group=heads // kv_heads,
        ffn=ffn,
        kv_heads=groups,
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=config.get("max_position_embeddings") or 0,
        ffn_bias=bool(family.ffn_bias_key and config.get(family.ffn_bias_key)),
        qkv_bias=family.qkv_bias or attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=family.qk_norm,
    )


def layout_widths(layout: Any, layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """FFN channels and key-value heads of each layer by `resprout_layout`; BadInput where it is broken."""
    found: list[Any] = [layout.get(key) if isinstance(layout, Mapping) else None for key in LAYOUT_LISTS]
    for widths in found:
        if not isinstance(widths, list | tuple) or len(widths) != layers or not all(map(_is_width, widths)):
            raise BadInput(
                f"{LAYOUT_KEY} in config.json must list {' and '.join(LAYOUT_LISTS)}, whole numbers from 1, "
                f"for each of the {layers} layers; save the model again with resprout"
            )
    return tuple(found[0]), tuple(found[1])


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
