"""A parameter budget spent over layers: blocks bought one by one, shares, a knapsack; imports no torch.

A block is `round_to` FFN channels, or one KV group, expert, or query head of each group. Every layer keeps
its first block of each kind; the others are bought in the order of their value until nothing more fits.

In the knapsack a place is a kind of unit in a layer, and can keep 1, 2, ... blocks. Keeping fewer costs what
a cumulative criterion says of that level, or else the sum of the scores of what goes. The best choice for all
places together is found by dynamic programming (ZipLM, Kurtic et al., arXiv 2302.04089) over the budget cut
into BUCKETS pieces: parameters, or milliseconds of a table measured on this machine (tasks/prune/latency.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.presets import Unit
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.interfaces import Bench, Costs, Request, Scores
from resprout.tasks.prune.target import block_sizes, least, removable_params

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BUCKETS = 20_000


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


def _ranked(layer: int, kind: Unit, values: Tensor, request: Request) -> Iterator[Block]:
    """A layer's blocks by the `values` [units] of their units, best first; a block's is the mean."""
    if (groups := request.shape.blocks(kind, layer)) > 1:
        # Each group loses one: the best of every group, the second best of every group, and so on.
        values = values.view(groups, -1).sort(dim=1, descending=True).values.mean(dim=0)
    values = values.sort(descending=True, stable=True).values
    sizes = sizes_of(request, layer, kind)
    each = request.shape.unit_params(kind, layer)
    for rank, (size, part) in enumerate(zip(sizes, values.split(sizes), strict=True)):
        yield Block(layer, kind, rank, size, part.mean().item(), size * each)


def rank_all(request: Request, scores: Scores, values: Callable[[Tensor], Tensor]) -> list[Block]:
    """All layers' blocks by `values(scores)` [units] of their units."""
    return [
        block
        for layer, by_kind in enumerate(scores)
        for kind in request.kinds
        for block in _ranked(layer, kind, values(by_kind[kind]), request)
    ]


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
                raise overflow_error(f"the allocator's measure of layer {layer}")
            blocks += _blocks_by_share(request, layer, kind, max(share, 1e-9))
    return spend(request, blocks)


def shape_with(shape: Shape, places: Sequence[tuple[Unit, int]], counts: Sequence[int]) -> Shape:
    """The shape with these numbers of units at places, each a kind in a layer."""
    kept = {kind: list(shape.counts(kind)) for kind, _ in places}
    for (kind, layer), count in zip(places, counts, strict=True):
        kept[kind][layer] = count
    for kind, by_layer in kept.items():
        shape = shape.with_counts(kind, by_layer)
    return shape


def require_bench(bench: Bench | None) -> Bench:
    """Return the bench; TypeError where an allocator that runs the model was given none."""
    if bench is None:
        raise TypeError("this allocator runs the model, so it must be given a Bench")
    return bench


def overflow_error(what: str) -> StageFailed:
    """Return the error for a number, named by `what`, that is not finite."""
    return StageFailed(
        f"{what} is not finite; the model's activations overflow in this dtype: give model.dtype: bfloat16 "
        "or float32"
    )


def _blocks_by_share(request: Request, layer: int, kind: Unit, share: float) -> Iterator[Block]:
    """Blocks that are worth more the earlier t times the share reaches their middle."""
    sizes, each, before = sizes_of(request, layer, kind), request.shape.unit_params(kind, layer), 0
    total = sum(sizes)
    for rank, size in enumerate(sizes):
        yield Block(layer, kind, rank, size, -(before + size / 2) / total / share, size * each)
        before += size


class Knapsack:
    """The widths that each place may have, what they lose and what they cost, and the best within a budget.

    Where scores are of more units than the request's shape has, the best of them are the units it has.
    """

    def __init__(self, request: Request, scores: Scores) -> None:
        self.shape = request.shape
        budget = request.costs or _in_params(request)
        self.limit = budget.limit
        self.places: list[tuple[Unit, int]] = []
        self.counts: list[list[int]] = []
        """Of each place the numbers of units that it may keep, the fewest first."""
        self.losses: list[NDArray[np.float64]] = []
        self.costs: list[NDArray[np.float64]] = []
        for layer, by_kind in enumerate(scores):
            for kind in request.kinds:
                keeps = np.cumsum(sizes_of(request, layer, kind))
                keeps = keeps[keeps >= min(least(request, kind, layer), keeps[-1])]
                values = _values(by_kind[kind], request, layer, kind)
                self.places.append((kind, layer))
                self.counts.append(keeps.tolist())
                self.losses.append(_losses(values, request.cumulative)[keeps])
                self.costs.append(np.array([budget.of(kind, layer, count) for count in self.counts[-1]]))

    def best(self, weights: Sequence[float] | None = None) -> list[int]:
        """Return the option of each place with which losses, times a place's weight, add up to least.

        Where no choice fits the budget, BadInput.
        """
        factors = [1.0] * len(self.places) if weights is None else weights
        losses = [weight * one for weight, one in zip(factors, self.losses, strict=True)]
        return best_within(losses, self.costs, self.limit)

    def widths(self, chosen: Sequence[int]) -> list[int]:
        """Units that each place keeps."""
        return [counts[option] for counts, option in zip(self.counts, chosen, strict=True)]

    def shape_with(self, chosen: Sequence[int]) -> Shape:
        """The request's shape with these widths."""
        return shape_with(self.shape, self.places, self.widths(chosen))


def _values(scores: Tensor, request: Request, layer: int, kind: Unit) -> NDArray[np.float64]:
    """Worth of a layer's units, best first; where there are blocks, of each the next as one."""
    values = scores.mean(dim=1).double()
    if (groups := request.shape.blocks(kind, layer)) > 1:
        by_group = values.view(groups, -1).sort(dim=1, descending=True).values
        values = by_group.amax(dim=0) if request.cumulative else by_group.sum(dim=0)
    found: NDArray[np.float64] = values.sort(descending=True).values.numpy()
    return found[: request.shape.counts(kind)[layer]]


def _losses(values: NDArray[np.float64], cumulative: bool) -> NDArray[np.float64]:
    """Loss with 0, 1, ... units kept, of which the worths are given, best first."""
    if cumulative:
        return np.append(values, 0.0)
    return values.sum() - np.insert(np.cumsum(values), 0, 0.0)


def best_within(
    losses: list[NDArray[np.float64]], costs: list[NDArray[np.float64]], limit: float
) -> list[int]:
    """Return the option of each place with which costs stay within `limit` and losses add up to least.

    With costs rounded down to buckets no choice is overlooked; where what is then the best does not really
    fit, they are rounded up, and the best may be missed by as many buckets as there are places. Where nothing
    fits, BadInput.
    """
    scaled = [np.maximum(one, 0.0) * (BUCKETS / limit) for one in costs]
    for rounded in (np.floor, np.ceil):
        # An exact multiple may come out a hair above or below.
        buckets = [rounded(np.where(np.abs(one - np.rint(one)) < 1e-6, np.rint(one), one)) for one in scaled]
        chosen = _least(losses, [one.astype(int) for one in buckets])
        if chosen is not None and _sum(costs, chosen) <= limit * (1 + 1e-9):
            return chosen
    raise BadInput(
        "prune.target leaves no choice of widths whose costs fit into it; raise the target, or lower "
        "prune.round_to"
    )


def _least(losses: list[NDArray[np.float64]], costs: list[NDArray[np.int64]]) -> list[int] | None:
    """The options of least total loss whose costs add up to BUCKETS at most, None where there are none."""
    least = np.full(BUCKETS + 1, np.inf)
    least[0] = 0.0
    took: list[NDArray[np.int64]] = []
    for loss, cost in zip(losses, costs, strict=True):
        best, choice = np.full(BUCKETS + 1, np.inf), np.full(BUCKETS + 1, -1)
        for option, step in enumerate(cost.tolist()):
            if step > BUCKETS:
                continue
            reached = least[: BUCKETS + 1 - step] + loss[option]
            better = reached < best[step:]
            best[step:][better] = reached[better]
            choice[step:][better] = option
        least = best
        took.append(choice)
    place = int(np.argmin(least))
    if not np.isfinite(least[place]):
        return None
    chosen: list[int] = []
    for choice, cost in zip(reversed(took), reversed(costs), strict=True):
        option = int(choice[place])
        chosen.append(option)
        place -= int(cost[option])
    return chosen[::-1]


def _sum(costs: list[NDArray[np.float64]], chosen: list[int]) -> float:
    return float(sum(cost[option] for cost, option in zip(costs, chosen, strict=True)))


def _in_params(request: Request) -> Costs:
    """Parameters that units bring, and how many of them the limit leaves room for."""
    shape = request.shape
    return Costs(
        float(request.limit - (shape.params - removable_params(request))),
        lambda kind, layer, count: float(count * shape.unit_params(kind, layer)),
    )
