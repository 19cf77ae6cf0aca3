"""The least total loss within a budget, by dynamic programming (ZipLM, Kurtic et al., arXiv 2302.04089).

Scores must compare across layers, as an increase of the loss does. Errors of `obs` are each a share of a
layer's own output and do not: for them `spdy` finds out by trying what a layer's errors weigh.
"""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.prune.budget import Knapsack
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape


class DynamicProgramming:
    """The widths of least total loss within a budget of parameters or milliseconds."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = False
    latency: ClassVar[bool] = True

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, of least loss among those within the budget."""
        options = Knapsack(request, scores)
        return options.shape_with(options.best())
