"""The widths that each place may have, what they lose and what they cost, and the best within a budget.

A place is a kind of unit in a layer, and can keep 1, 2, ... blocks. Keeping fewer costs what a cumulative
criterion says of that level, or else the sum of the scores of what goes. The best choice for all places
together is found by dynamic programming (ZipLM, Kurtic et al., arXiv 2302.04089) over the budget cut into
BUCKETS pieces: parameters, or milliseconds of a table measured on this machine (tasks/prune/latency.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resprout.configs.errors import BadInput
from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Costs, Request
from resprout.tasks.prune.spend import sizes_of
from resprout.tasks.prune.target import least, removable_params

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from resprout.tasks.prune.contracts import Scores

BUCKETS = 20_000


class Options:
    """What a request and its scores leave to choose from.

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
        """Which option of each place to take so that the losses, times a place's weight, add up to least.

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
        kept = {kind: list(self.shape.counts(kind)) for kind, _ in self.places}
        for (kind, layer), count in zip(self.places, self.widths(chosen), strict=True):
            kept[kind][layer] = count
        shape = self.shape
        for kind, counts in kept.items():
            shape = shape.with_counts(kind, counts)
        return shape


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
    """Which option of each place to take so that costs stay within `limit` and losses add up to least.

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
