"""SAP's PQ index: weights that are spread out keep more (Diao et al., ICLR 2023, arXiv 2302.05601).

For the d weights w of a layer's removable units, I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q, which is 0 where
all are equally large and 1 - d^(1/q - 1/p) where one is all there is. The lower bound of what must stay is
r = d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p)) (theorem 2), and a round of pruning removes the share
min(gamma (1 - r / d), beta) of a layer (algorithm 1).

Bound, index and beta = 0.9 are those of the authors' code (dem123456789/Pruning-Deep-Neural-Networks-from-a-
Sparsity-Perspective), eta = 0 as in its experiments. There gamma is given, each tensor is a layer, and rounds
of training lie between those of pruning; here one round is made, a layer's index is that of all weights of
its units together, and gamma is the number that meets the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import BadInput
from resprout.tasks.prune.budget import require_bench, spend_shares
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape, require
from resprout.tasks.prune.target import kept_share

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.configs.presets import Unit


@dataclass(frozen=True)
class PqIndex:
    """Removed shares by the ratio of two norms of each layer's weights; uses no data."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True

    p: float = 0.5
    """The smaller norm, above 0 and at most 1."""
    q: float = 1.0
    """The larger norm."""
    max_removed_ratio: float = 0.9
    """beta: the largest share of its units that a layer loses, as long as the target can be met."""

    def __post_init__(self) -> None:
        if not 0 < self.p < self.q or self.p > 1:
            raise BadInput(f"'pq_index' has p: {self.p} and q: {self.q}; give 0 < p <= 1 and p < q")
        require("pq_index", 0.01, 1, max_removed_ratio=self.max_removed_ratio)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        import torch

        from resprout.tasks.models.anatomy import anatomy

        bench = require_bench(bench)
        layers = bench.among(anatomy(bench.model).layers)
        bounds: dict[Unit, list[float]] = {
            kind: [
                share(torch.cat([one.flatten() for one in layer.units(kind).coupled()]), self.p, self.q)
                for layer in layers
            ]
            for kind in request.kinds
        }
        each: list[tuple[Unit, int]] = [(kind, layer) for kind in bounds for layer in range(len(layers))]
        sizes = [
            float(request.shape.counts(kind)[layer] * request.shape.unit_params(kind, layer))
            for kind, layer in each
        ]
        flat = [bounds[kind][layer] for kind, layer in each]
        kept = dict(
            zip(each, kept_shares(flat, sizes, kept_share(request), self.max_removed_ratio), strict=True)
        )
        shares = {kind: [kept[kind, layer] for layer in range(len(layers))] for kind in bounds}
        return spend_shares(request, shares)


def kept_shares(
    bounds: Sequence[float], sizes: Sequence[float], kept: float, max_removed: float
) -> list[float]:
    """1 - min(gamma (1 - bound), max_removed), gamma such that of all `sizes` together `kept` stays.

    Where no gamma removes as much, all lose `max_removed`; bounds of 1 leave everything.
    """
    gaps = [1 - min(bound, 1.0) for bound in bounds]
    if not any(gaps):
        return [1.0] * len(gaps)

    def shares(gamma: float) -> list[float]:
        return [1 - min(gamma * gap, max_removed) for gap in gaps]

    def stays(gamma: float) -> float:
        return sum(map(mul, shares(gamma), sizes)) / sum(sizes)

    low, high = 0.0, max_removed / min(gap for gap in gaps if gap)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if stays(middle) > kept else (low, middle)
    return shares(high)


def share(weights: Tensor, p: float, q: float) -> float:
    """(1 - I)^(p q / (q - p)) of the PQ index: between 0 and 1, 1 where all weights are equally large."""
    sizes = weights.float().abs()
    # Of the largest, so that powers neither overflow nor vanish.
    sizes = (sizes / sizes.max().clamp_min(1e-30)).double()
    ratio = sizes.pow(p).mean().pow(1 / p) / sizes.pow(q).mean().pow(1 / q).clamp_min(1e-30)
    return float(ratio.pow(p * q / (q - p)))
