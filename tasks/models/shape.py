"""The shape of a decoder from its config.json: widths, tensors, parameter counts, shapes without some layers.

Imports no torch and reads no weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resprout.configs.errors import BadInput
from resprout.configs.presets import Unit
from resprout.infra.store.stored_json import DamagedJson, parse_json
from resprout.tasks.models.families import FAMILIES, LAYOUT_KEY, check_family
from resprout.tasks.models.families.family import Axes, Family, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model: TypeAlias = "PreTrainedModel"
"""A causal language model of transformers."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

COUNTED: Mapping[Unit, str] = {
    "ffn": "ffn",
    "kv_groups": "kv_heads",
    "heads": "heads_per_group",
    "experts": "experts",
}
"""Units of a layer, and the width that counts them; of query heads those in each group."""

LAYOUT_LISTS = {
    "intermediate_size": "ffn",
    "num_key_value_heads": "kv_heads",
    "num_attention_heads": "heads",
    "num_experts": "experts",
}
"""Lists that `resprout_layout` may hold, and what they say; the last two may be left out."""
MUST = ("intermediate_size", "num_key_value_heads")
MOST_LAYERS = 10_000
"""Far beyond any model: what is built for each layer stays small whatever a file says."""
MOST_WIDTH = 2**31 - 1
ROTATED_KEY = "turned"
"""True in `resprout_layout` where each sublayer has a basis of the residual stream of its own."""
ROTATIONS: Tensors = {"attention_turn.weight": ("hidden", "hidden"), "ffn_turn.weight": ("hidden", "hidden")}
"""Tensors that a layer then has beside the tensors of its family (tasks/models/layouts.py)."""
Sublayer = Literal["attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")
"""Sublayers in the order in which scores and layers have them."""
LAYER_TYPES = "layer_types"
"""Key of config.json that lists the kind of attention of each layer, where layers differ in that."""


@dataclass(frozen=True)
class Sizes:
    """Unique parameters (a tied tensor once), those outside embeddings and head, and bytes of the weights."""

    params: int
    non_embedding_params: int
    bytes: int


@dataclass(frozen=True)
class Widths:
    """FFN channels, KV groups, query heads in each group and experts of a layer; 0 where one is missing."""

    ffn: int
    kv_heads: int
    heads_per_group: int
    experts: int = 0


@dataclass(frozen=True)
class Shape:
    """All widths of a decoder; `ffn`, `kv_heads`, `heads_per_group`, `experts` have a number for each layer.

    A width of 0 means that the layer lacks that sublayer. `rotated`: each sublayer has a basis of the
    residual stream of its own (tasks/models/layouts.py). `config` is the config.json that says what else the
    tensors depend on: biases, tied embeddings, positions.
    """

    model_type: str
    hidden: int
    vocab: int
    head_dim: int
    ffn: tuple[int, ...]
    kv_heads: tuple[int, ...]
    heads_per_group: tuple[int, ...]
    experts: tuple[int, ...] = ()
    max_positions: int = 0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rotated: bool = False

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def layers(self) -> int:
        return len(self.ffn)

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads of each layer."""
        return tuple(groups * each for groups, each in zip(self.kv_heads, self.heads_per_group, strict=True))

    def widths(self, layer: int) -> Widths:
        """The widths of one layer."""
        experts = self.experts[layer] if self.experts else 0
        return Widths(self.ffn[layer], self.kv_heads[layer], self.heads_per_group[layer], experts)

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same widths."""
        return len({self.widths(layer) for layer in range(self.layers)}) == 1

    @property
    def stock(self) -> bool:
        """Whether the family's stock config can state these widths."""
        whole = self.uniform and self.ffn[0] > 0 and self.kv_heads[0] > 0 and not self.rotated
        if not self.family.states_heads:
            return whole and self.heads[0] * self.head_dim == self.hidden
        return whole and (not self.family.heads_divide_hidden or self.hidden % self.heads[0] == 0)

    @property
    def tied(self) -> bool:
        """Whether the head shares the embeddings' tensor."""
        return bool(self.config.get("tie_word_embeddings"))

    def axis(self, axis: int | str, widths: Widths) -> int:
        """The length of an axis (tasks/models/families/family.py) in a layer of these widths."""
        if isinstance(axis, int):
            return axis
        if "+" in axis:
            return sum(self.axis(part, widths) for part in axis.split("+"))
        query = widths.kv_heads * widths.heads_per_group * self.head_dim
        key = widths.kv_heads * self.head_dim
        known = {
            "hidden": self.hidden,
            "vocab": self.vocab,
            "head_dim": self.head_dim,
            "query": query,
            "key": key,
            "value": key,
            "qkv_by_head": query + 2 * key,
            "ffn": widths.ffn,
            "experts": widths.experts,
        }
        return known[axis]

    def dims(self, axes: Axes, layer: int = 0) -> tuple[int, ...]:
        """The dimensions of a tensor with these axes, in a layer where it is in one."""
        widths = self.widths(layer)
        return tuple(self.axis(axis, widths) for axis in axes)

    def layer_tensors(self, widths: Widths) -> Tensors:
        """Names from the layer on, and axes, of all tensors of a layer of these widths."""
        attention = self.family.attention(self.config) if widths.kv_heads else {}
        ffn = self.family.ffn(self.config) if widths.ffn else {}
        return {**attention, **ffn, **(ROTATIONS if self.rotated else {})}

    def matrices(self, layer: int) -> Iterator[tuple[str, int]]:
        """Names from the layer on, and the length of the inputs: all matrices of attention and FFN.

        Norms, biases, routers, gates of one output and rotations between bases are none.
        """
        for name, axes in self.layer_tensors(self.widths(layer)).items():
            if name in ROTATIONS:
                continue
            if len(axes) > 2 or (len(axes) == 2 and axes[0] not in (1, "experts")):
                inputs = axes[0 if self.family.transposed else -1]
                yield name, self.axis(inputs, self.widths(layer))

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Whole names and dimensions of all tensors."""
        for name, axes in self.family.ends(self.config).items():
            yield name, self.dims(axes)
        for layer in range(self.layers):
            for name, axes in self.layer_tensors(self.widths(layer)).items():
                yield f"{self.family.layer_prefix}{layer}.{name}", self.dims(axes, layer)

    def counts(self, unit: Unit) -> tuple[int, ...]:
        """Units of each layer; of query heads in each group, of FFN channels in each expert."""
        if unit == "hidden":
            return (self.hidden,) * self.layers
        counts: tuple[int, ...] = getattr(self, COUNTED[unit])
        return counts

    def blocks(self, unit: Unit, layer: int) -> int:
        """Number of blocks that keep as many units each: groups of query heads, experts of FFN channels."""
        if unit == "heads":
            return self.kv_heads[layer]
        return self.experts[layer] if unit == "ffn" and self.experts else 1

    def with_counts(self, unit: Unit, counts: Iterable[int]) -> Shape:
        """The shape with that many units in each layer; hidden channels are as many in all."""
        if unit == "hidden":
            (hidden,) = set(counts)
            return replace(self, hidden=hidden)
        changed: Any = {COUNTED[unit]: tuple(counts)}
        return replace(self, **changed)

    def with_widths(self, widths: Iterable[Widths]) -> Shape:
        """The shape of as many layers as there are `widths`, with these."""
        widths = tuple(widths)
        return replace(
            self,
            ffn=tuple(one.ffn for one in widths),
            kv_heads=tuple(one.kv_heads for one in widths),
            heads_per_group=tuple(one.heads_per_group for one in widths),
            experts=tuple(one.experts for one in widths) if self.experts else (),
        )

    def with_layers(self, kept: Iterable[int]) -> Shape:
        """The shape of these layers alone."""
        return self.with_widths(self.widths(layer) for layer in kept)

    def layer_params(self, widths: Widths) -> int:
        """Parameters of a layer of these widths."""
        tensors = self.layer_tensors(widths).values()
        return sum(math.prod(self.axis(axis, widths) for axis in axes) for axes in tensors)

    def unit_params(self, unit: Unit, layer: int = 0) -> int:
        """Parameters that leave with one unit of a layer; with one of *each* block where there are `blocks`.

        A hidden channel's are those in this layer; layer 0 stands for those outside layers as well.
        """
        widths = self.widths(layer)
        if unit == "hidden":
            ends = self.family.ends(self.config).values() if layer == 0 else ()
            tensors = [*self.layer_tensors(widths).values(), *ends]
            return sum(
                math.prod(self.axis(axis, widths) for axis in axes if axis != "hidden")
                * (self.hidden ** axes.count("hidden") - (self.hidden - 1) ** axes.count("hidden"))
                for axes in tensors
            )
        fewer: Any = {COUNTED[unit]: self.counts(unit)[layer] - 1}
        # Widths of 1 and less would take the whole sublayer, with what no unit owns, away.
        more: Any = {COUNTED[unit]: self.counts(unit)[layer] + 1}
        if min(fewer.values()) > 0:
            return self.layer_params(widths) - self.layer_params(replace(widths, **fewer))
        return self.layer_params(replace(widths, **more)) - self.layer_params(widths)

    @property
    def embedding_params(self) -> int:
        """Token embeddings, and the head where it is not tied to them."""
        ends = self.family.ends(self.config).values()
        return sum(math.prod(self.dims(axes)) for axes in ends if axes[0] == "vocab")

    @property
    def non_embedding_params(self) -> int:
        """All parameters but `embedding_params`."""
        layers = Counter(self.widths(layer) for layer in range(self.layers))
        ends = self.family.ends(self.config).values()
        return sum(count * self.layer_params(widths) for widths, count in layers.items()) + sum(
            math.prod(self.dims(axes)) for axes in ends if axes[0] != "vocab"
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
    given = read_config(source) if isinstance(source, Path) else source
    family = check_family(given)
    config = {**family.defaults, **given}
    keys = family.keys
    _check_widths(family, config)
    if unsupported := family.check(config):
        raise BadInput(
            f"config.json is of a {family.model_type} model that is not supported: {unsupported}; give "
            "another model of the family"
        )
    hidden, heads, layers = config[keys.hidden], config[keys.heads], config[keys.layers]
    kv_heads = (config.get(keys.kv_heads) if keys.kv_heads else None) or heads
    if heads % kv_heads:
        raise BadInput(
            f"config.json says {keys.heads}: {heads}, which {keys.kv_heads}: {kv_heads} does not "
            "divide; take the config that came with the weights"
        )
    experts = max((config[key] for key in _experts_key(family, config)), default=0)
    wide: dict[str, tuple[int, ...]] = {
        "ffn": (_ffn(family, config),) * layers,
        "kv_heads": (kv_heads,) * layers,
        "heads": (heads,) * layers,
        "experts": (experts,) * layers,
    }
    if config.get(LAYOUT_KEY) is not None:
        wide |= layout_widths(config[LAYOUT_KEY], layers)
        if "num_attention_heads" not in config[LAYOUT_KEY]:
            wide["heads"] = tuple(groups * heads // kv_heads for groups in wide["kv_heads"])
    return Shape(
        model_type=family.model_type,
        hidden=hidden,
        vocab=config["vocab_size"],
        head_dim=(config.get(keys.head_dim) if keys.head_dim else None) or hidden // heads,
        ffn=wide["ffn"],
        kv_heads=wide["kv_heads"],
        heads_per_group=tuple(
            all_ // groups if groups else heads // kv_heads
            for all_, groups in zip(wide["heads"], wide["kv_heads"], strict=True)
        ),
        experts=wide["experts"] if keys.experts else (),
        max_positions=config.get(keys.positions) or 0,
        config=config,
        rotated=(config.get(LAYOUT_KEY) or {}).get(ROTATED_KEY) is True,
    )


def _check_widths(family: Family, config: Mapping[str, Any]) -> None:
    keys = family.keys
    needed = [keys.hidden, "vocab_size", keys.heads, keys.layers, *_experts_key(family, config)]
    # A stock config that may leave the FFN's width out has a default that says so by None.
    needed += [] if keys.ffn in family.defaults else [keys.ffn]
    missing = [key for key in needed if not config.get(key)]
    if missing:
        raise BadInput(
            f"config.json of the {family.model_type} model lacks {', '.join(missing)}; take the config that "
            "came with the weights"
        )
    for key in (*needed, keys.ffn, keys.kv_heads, keys.head_dim, keys.positions):
        most = MOST_LAYERS if key == keys.layers else MOST_WIDTH
        if key and config.get(key) is not None and not (_is_width(config[key]) and config[key] <= most):
            raise BadInput(
                f"config.json says {key}: {repr(config[key])[:40]}, expected a whole number from 1 to "
                f"{most:,}; take the config that came with the weights"
            )


def _experts_key(family: Family, config: Mapping[str, Any]) -> list[str]:
    """The key that holds the number of experts, nothing in a dense family."""
    known = family.keys.experts
    return [key for key in known if key in config][:1] or list(known[:1])


def _ffn(family: Family, config: Mapping[str, Any]) -> int:
    width: int | None = config.get(family.keys.ffn)
    return width or 4 * int(config[family.keys.hidden])


def layout_widths(layout: Any, layers: int) -> dict[str, tuple[int, ...]]:
    """Widths of each layer in `resprout_layout`, by the values of LAYOUT_LISTS; a broken one is BadInput."""
    given = layout if isinstance(layout, Mapping) else {}
    found: dict[str, tuple[int, ...]] = {}
    for key, name in LAYOUT_LISTS.items():
        widths = given.get(key)
        if widths is None and key not in MUST:
            continue
        if (
            not isinstance(widths, list | tuple)
            or len(widths) != layers
            or not all(map(_is_width_or_0, widths))
        ):
            raise BadInput(
                f"{LAYOUT_KEY} in config.json must list {' and '.join(MUST)}, whole numbers from 0, "
                f"for each of the {layers} layers; save the model again with resprout"
            )
        found[name] = tuple(widths)
    return found


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_width_or_0(value: Any) -> bool:
    return _is_width(value) or (value == 0 and isinstance(value, int) and not isinstance(value, bool))


def count(model: Model) -> Sizes:
    """The sizes of a model in memory, each tensor counted once however often it is used."""
    unique = {id(parameter): parameter for parameter in model.parameters()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding = {id(end.weight) for end in ends if end is not None}
    return Sizes(
        params=sum(parameter.numel() for parameter in unique.values()),
        non_embedding_params=sum(p.numel() for key, p in unique.items() if key not in embedding),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in unique.values()),
    )


def read_config(folder: Path, place: str | None = None) -> dict[str, Any]:
    """The object in `folder`/config.json; BadInput, which names `place`, where there is none to read."""
    path = folder / "config.json"
    name = f"{place or folder}/config.json"
    if not path.is_file():
        raise BadInput(
            f"{place or folder} is no model folder: it has no config.json; give a folder that "
            "save_pretrained wrote"
        )
    try:
        data = parse_json(path.read_bytes(), name, finite=True)
    except DamagedJson as error:
        raise BadInput(f"{error}; write the model's config again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{name} holds no object but a {type(data).__name__}; write the model's config again")
    return data


@dataclass(frozen=True)
class DepthUnit:
    """A unit of depth: the sublayers of one layer that leave together, and the row of its score."""

    layer: int
    row: int
    sublayers: tuple[Sublayer, ...]


def first_of_each_type(config: Mapping[str, Any], layers: int) -> frozenset[int]:
    """The first layer of each kind of attention; layer 0 where all are of one kind.

    Caches of transformers measure the length of what they hold in the first layer, and masks are sized by the
    first layer of each kind (`get_seq_length`, `get_mask_sizes`): without its attention they would see an
    empty cache at every token. So that attention is never removed.
    """
    types = config.get(LAYER_TYPES) or [""] * layers
    return frozenset(types.index(kind) for kind in set(types))


def caches_work(shape: Shape) -> bool:
    """Whether the first layer of each kind of attention has one, layers that lack everything left out."""
    kept = [layer for layer in range(shape.layers) if shape.ffn[layer] or shape.kv_heads[layer]]
    first = first_of_each_type(cut_types(shape.config, kept), len(kept))
    return bool(kept) and all(shape.kv_heads[kept[layer]] for layer in first)


def cut_types(config: Mapping[str, Any], kept: Sequence[int]) -> Mapping[str, Any]:
    """The config of a model that keeps these layers: its list of kinds of attention cut to them."""
    types = config.get(LAYER_TYPES)
    return config if types is None else {**config, LAYER_TYPES: [types[layer] for layer in kept]}


def depth_units(shape: Shape, kind: Unit) -> Iterator[DepthUnit]:
    """The units of `kind` that the model has and that may be removed, layer by layer."""
    first = first_of_each_type(shape.config, shape.layers)
    for layer in range(shape.layers):
        has = {"attention": shape.kv_heads[layer], "ffn": shape.ffn[layer]}
        if kind == "layers":
            yield DepthUnit(layer, 0, tuple(one for one in SUBLAYERS if has[one]))
            continue
        for row, one in enumerate(SUBLAYERS):
            if has[one] and not (one == "attention" and layer in first):
                yield DepthUnit(layer, row, (one,))


def without(shape: Shape, removed: Iterable[DepthUnit]) -> Shape:
    """The shape with widths of 0 where these units were."""
    without = {(unit.layer, one) for unit in removed for one in unit.sublayers}

    def left(layer: int) -> Widths:
        widths = shape.widths(layer)
        return replace(
            widths,
            ffn=0 if (layer, "ffn") in without else widths.ffn,
            kv_heads=0 if (layer, "attention") in without else widths.kv_heads,
        )

    return shape.with_widths(left(layer) for layer in range(shape.layers))


def check_numbers(shape: Shape) -> None:
    """Raise BadInput where a layer computes with its number, so that it cannot move up."""
    key = shape.family.numbered_key
    if key and shape.config.get(key):
        raise BadInput(
            f"config.json sets {key}, by which each layer's attention depends on its number, so no layer of "
            "this model can be removed; prune ffn instead"
        )
