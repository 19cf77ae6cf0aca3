"""A budget spent block by block: what allocators that tell layers apart have in common; imports no torch.

A block is `round_to` FFN channels, or one KV group, expert, or query head of each group. Every layer keeps
its first block of each kind; the others are bought in the order of their value until nothing more fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Bench, Request
from resprout.tasks.prune.target import block_sizes, least, removable_params

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The next-best `units` of a layer's kind, worth `value` each on average."""

    layer: int
    kind: Unit
    rank: int
    units: int
    value: float
    params: int


def sizes_of(request: Request, layer: int, kind: Unit) -> list[int]:
    """Units in each block of a layer, in the order in which they are bought."""
    return block_sizes(request.shape.counts(kind)[layer], request.round_to if kind == "ffn" else 1)


def ranked(layer: int, kind: Unit, values: Tensor, request: Request) -> Iterator[Block]:
    """A layer's blocks by the `values` [units] of their units, best first; a block's is the mean."""
    if (groups := request.shape.blocks(kind, layer)) > 1:
        # Each group loses one: the best of every group, the second best of every group, and so on.
        values = values.view(groups, -1).sort(dim=1, descending=True).values.mean(dim=0)
    values = values.sort(descending=True, stable=True).values
    sizes = sizes_of(request, layer, kind)
    each = request.shape.unit_params(kind, layer)
    for rank, (size, part) in enumerate(zip(sizes, values.split(sizes), strict=True)):
        yield Block(layer, kind, rank, size, part.mean().item(), size * each)


def spend(
    request: Request,
    blocks: Sequence[Block],
    floors: Mapping[tuple[int, Unit], float] | None = None,
    setting: str = "",
) -> Shape:
    """The request's shape with the best blocks that fit the limit; the blocks that must stay come first.

    Those are as few as a layer can work with, and of each layer and kind as many units as `floors` gives;
    where these do not fit the limit, BadInput names the `setting` that they come from.
    """
    shape = request.shape
    kept: dict[Unit, list[int]] = {kind: [0] * shape.layers for kind in request.kinds}
    left = request.limit - (shape.params - removable_params(request))

    def must(block: Block) -> bool:
        before = block.rank * (request.round_to if block.kind == "ffn" else 1)
        floor = (floors or {}).get((block.layer, block.kind), 0.0)
        return before < max(floor, least(request, block.kind, block.layer))

    def order(block: Block) -> tuple[bool, float, int, str, int]:
        return not must(block), -block.value, block.layer, block.kind, block.rank

    needed = sum(block.params for block in blocks if must(block))
    if any((floors or {}).values()) and needed > left:
        raise BadInput(
            f"allocator_settings.{setting} keeps {needed} parameters of the units where prune.target leaves "
            f"{left}; lower it or raise the target"
        )
    closed: set[tuple[int, Unit]] = set()
    for block in sorted(blocks, key=order):
        place = (block.layer, block.kind)
        if place in closed or block.params > left:
            closed.add(place)
            continue
        kept[block.kind][block.layer] += block.units
        left -= block.params
    for kind, counts in kept.items():
        shape = shape.with_counts(kind, counts)
    return shape


def spend_shares(request: Request, shares: Mapping[Unit, Sequence[float]]) -> Shape:
    """Widths in proportion to `shares`, one for each kind and layer, within the limit.

    With a common factor t each layer keeps t times its share of its units, rounded to blocks; t grows until
    the limit is met. A layer that is whole takes no more, and what it leaves goes to the others. Shares that
    are not finite raise StageFailed; those of 0 and less count as very small.
    """
    blocks: list[Block] = []
    for kind, by_layer in shares.items():
        for layer, share in enumerate(by_layer):
            if not math.isfinite(share):
                raise overflow(f"the allocator's measure of layer {layer}")
            blocks += _due(request, layer, kind, max(share, 1e-9))
    return spend(request, blocks)


def given(bench: Bench | None) -> Bench:
    """The bench, which an allocator that tries the model must have been given."""
    if bench is None:
        raise TypeError("this allocator looks at the model, so it must be given a Bench")
    return bench


def overflow(what: str) -> StageFailed:
    """That a number, which the sentence begins with, is not finite."""
    return StageFailed(
        f"{what} is not finite; the model's activations overflow in this dtype: give model.dtype: bfloat16 "
        "or float32"
    )


def _due(request: Request, layer: int, kind: Unit, share: float) -> Iterator[Block]:
    """Blocks that are worth more the earlier t times the share reaches their middle."""
    sizes, each, before = sizes_of(request, layer, kind), request.shape.unit_params(kind, layer), 0
    total = sum(sizes)
    for rank, size in enumerate(sizes):
        yield Block(layer, kind, rank, size, -(before + size / 2) / total / share, size * each)
        before += size
