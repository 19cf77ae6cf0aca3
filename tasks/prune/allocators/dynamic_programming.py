"""The least total loss within a budget, by dynamic programming (ZipLM, Kurtic et al., arXiv 2302.04089).

Each kind of unit in each layer can keep 1, 2, ... blocks. Keeping fewer costs what `obs` says of that level:
the layer's error as a share of that with nothing left, as in ZipLM; of criteria whose scores are no such
errors it costs the sum of the scores of what goes. The best choice for all of them together is found over the
budget cut into BUCKETS pieces. The budget is parameters, or with a latency as target milliseconds of a table
measured on this machine (tasks/prune/latency.py). Scores must compare across layers, as an increase of the
loss does. ZipLM may also drop a part whole, and searches weights of the layers' errors by the loss of the
pruned model (SPDY); here a block always stays, and all layers weigh the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from resprout.configs.errors import BadInput
from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Costs
from resprout.tasks.prune.target import block_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from resprout.tasks.prune.contracts import Bench, Request, Scores

BUCKETS = 20_000


class DynamicProgramming:
    """The widths of least total loss within a budget of parameters or milliseconds."""

    per_layer: ClassVar[bool] = True
    tries: ClassVar[bool] = False
    latency: ClassVar[bool] = True

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, of least loss among those within the budget."""
        shape = request.shape
        costs = request.costs or _in_params(request)
        places: list[tuple[int, Unit]] = []
        counts: list[list[int]] = []
        losses: list[NDArray[np.float64]] = []
        spent: list[NDArray[np.float64]] = []
        for layer, by_kind in enumerate(scores):
            for kind in request.kinds:
                values = _values(by_kind[kind], request, layer, kind)
                sizes = block_sizes(len(values), request.round_to if kind == "ffn" else 1)
                keeps = np.cumsum(sizes)
                places.append((layer, kind))
                counts.append(keeps.tolist())
                losses.append(_losses(values, request.cumulative)[keeps])
                spent.append(np.array([costs.of(kind, layer, count) for count in keeps.tolist()]))
        chosen = cheapest_within(losses, spent, costs.limit)
        kept = {kind: list(shape.counts(kind)) for kind in request.kinds}
        for (layer, kind), options, choice in zip(places, counts, chosen, strict=True):
            kept[kind][layer] = options[choice]
        for kind, widths in kept.items():
            shape = shape.with_counts(kind, widths)
        return shape


def _losses(values: NDArray[np.float64], cumulative: bool) -> NDArray[np.float64]:
    """Loss with 0, 1, ... units kept, of which the worths are given, best first."""
    if cumulative:
        return np.append(values, 0.0)
    return values.sum() - np.insert(np.cumsum(values), 0, 0.0)


def _values(scores: Tensor, request: Request, layer: int, kind: Unit) -> NDArray[np.float64]:
    """Worth of a layer's units, best first; where there are blocks, of each the next as one."""
    values = scores.mean(dim=1).double()
    if (groups := request.shape.blocks(kind, layer)) > 1:
        by_group = values.view(groups, -1).sort(dim=1, descending=True).values
        values = by_group.amax(dim=0) if request.cumulative else by_group.sum(dim=0)
    found: NDArray[np.float64] = values.sort(descending=True).values.numpy()
    return found


def cheapest_within(
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
    removable = sum(
        count * shape.unit_params(kind, layer)
        for kind in request.kinds
        for layer, count in enumerate(shape.counts(kind))
    )
    return Costs(
        float(request.limit - (shape.params - removable)),
        lambda kind, layer, count: float(count * shape.unit_params(kind, layer)),
    )
