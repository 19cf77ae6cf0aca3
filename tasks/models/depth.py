"""Layers and sublayers as units: which of them may go, and what a shape is without them; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from resprout.configs.errors import BadInput
from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape

Sublayer = Literal["attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")
"""Sublayers in the order in which scores and layers have them."""
LAYER_TYPES = "layer_types"
"""Key of config.json that lists the kind of attention of each layer, where layers differ in that."""


@dataclass(frozen=True)
class Block:
    """A unit of depth: the sublayers of one layer that leave together, and the row of its score."""

    layer: int
    row: int
    sublayers: tuple[Sublayer, ...]


def first_of_each_type(config: Mapping[str, Any], layers: int) -> frozenset[int]:
    """The first layer of each kind of attention; layer 0 where all are of one kind.

    Caches of transformers measure the length of what they hold in the first layer, and masks are sized by the
    first layer of each kind (`get_seq_length`, `get_mask_sizes`): were its attention gone, they would see an
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


def blocks(shape: Shape, kind: Unit) -> Iterator[Block]:
    """The units of `kind` that the model has and that may be removed, layer by layer."""
    first = first_of_each_type(shape.config, shape.layers)
    for layer in range(shape.layers):
        has = {"attention": shape.kv_heads[layer], "ffn": shape.ffn[layer]}
        if kind == "layers":
            yield Block(layer, 0, tuple(one for one in SUBLAYERS if has[one]))
            continue
        for row, one in enumerate(SUBLAYERS):
            if has[one] and not (one == "attention" and layer in first):
                yield Block(layer, row, (one,))


def without(shape: Shape, removed: Iterable[Block]) -> Shape:
    """The shape with widths of 0 where these units were."""
    gone = {(block.layer, one) for block in removed for one in block.sublayers}
    return replace(
        shape,
        ffn=tuple(0 if (layer, "ffn") in gone else width for layer, width in enumerate(shape.ffn)),
        kv_heads=tuple(
            0 if (layer, "attention") in gone else width for layer, width in enumerate(shape.kv_heads)
        ),
    )


def check_numbers(shape: Shape) -> None:
    """Raise BadInput where a layer computes with its number, so that it cannot move up."""
    key = shape.family.numbered_key
    if key and shape.config.get(key):
        raise BadInput(
            f"config.json sets {key}, by which each layer's attention depends on its number, so no layer of "
            "this model can be removed; prune ffn instead"
        )
