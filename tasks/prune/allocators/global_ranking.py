"""One ranking of raw scores over all layers (Global MP, Gupta et al., arXiv 2209.14624).

The paper ranks single weights of all layers by abs(w) and prunes the smallest; lest a layer collapses, every
layer keeps a fixed number of weights, the minimum threshold, and a layer that has fewer stays whole. Here
whole units are ranked, by scores that compare across layers (criterion `magnitude` with `norm: mean`, over
all weights coupled to a unit), in blocks of `round_to` channels as in `global_standardised`, and a layer is
what one kind of unit holds in it. The threshold is given as in the authors' code (manasgupta-1/GlobalMP,
`--min-threshold`), in percent of the weights of all layers together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.budget import rank_all, spend
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape, require
from resprout.tasks.prune.target import removable_params


@dataclass(frozen=True)
class GlobalRanking:
    """One ranking over all layers and kinds of the scores as they are, and a minimum for every layer."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = False

    min_threshold_percent: float = 0.05
    """Every layer keeps this percent of the removable weights of all layers together, or all of its own."""

    def __post_init__(self) -> None:
        require("global_ranking", 0, 100, min_threshold_percent=self.min_threshold_percent)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow.

        A threshold that does not fit the limit raises BadInput.
        """
        least = removable_params(request) * self.min_threshold_percent / 100
        blocks = rank_all(request, scores, lambda one: one.mean(dim=1))
        floors = {(b.layer, b.kind): least / request.shape.unit_params(b.kind, b.layer) for b in blocks}
        return spend(request, blocks, floors, f"min_threshold_percent {self.min_threshold_percent:g}")
