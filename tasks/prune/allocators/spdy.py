"""SPDY: minimise the weighted sum of layer losses; weights are found by running the model.

Errors of layers add up to no loss of the model: where one feature makes up most of a layer's output, an error
of a hundredth may matter more than one of a tenth elsewhere. So each kind of unit in each layer has a weight
by which its losses are multiplied before the dynamic programme (tasks/prune/budget.py) adds them up (SPDY,
Frantar and Alistarh, arXiv 2201.13096, which ZipLM takes over, Kurtic et al., arXiv 2302.04089). What weights
are worth is the next-token loss, over calibration tokens, of the model at the widths that they lead to.

Both papers draw new weights from [0, 1] hundreds of times. Weights of a language model differ by orders of
magnitude, so here they begin as measured: what narrowing one place alone does to the loss, over the error it
has there. Half the blocks show small cuts but may be lost in noise, the fewest show large ones; both
are measured, for a forward pass a place, and whichever leads to the least loss is taken. Then as many `steps`
change one weight in ten of the best so far (as ZipLM does, a thousand times), each by a factor. A candidate
is tried by zeros in the input features of the readers, where ZipLM solves the weights again, as repairs come
after allocation; and a block of each part always stays, where ZipLM may drop the part.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.models.ablation import BATCH_TOKENS, next_token_loss
from resprout.tasks.prune.budget import Knapsack, overflow_error, require_bench
from resprout.tasks.prune.interfaces import Bench, Kinds, Request, Scores, Shape, require
from resprout.tasks.prune.search import WidthProbe

if TYPE_CHECKING:
    from torch import Tensor


LEAST = 0.1
"""Of the median weight."""


@dataclass(frozen=True)
class Spdy:
    """Dynamic programming over losses weighed by layer, the weights found by trying the model."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True
    narrows: ClassVar[bool] = True
    latency: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    steps: int = 50
    """Changes of the best weights that are tried."""
    change_ratio: float = 0.1
    """Share of the weights that are changed at a time, on average; one is in any case."""
    factor: float = 4.0
    """A changed weight grows or shrinks by this factor at most."""
    calibration_tokens: int = 2048
    """About this many calibration tokens are used: whole samples from the first, at least one."""
    seed: int = 17
    """Of the changes."""

    def __post_init__(self) -> None:
        require("spdy", 0, steps=self.steps, seed=self.seed)
        require("spdy", 0, 1, change_ratio=self.change_ratio)
        require("spdy", 1, factor=self.factor, calibration_tokens=self.calibration_tokens)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The widths of least loss among those tried; what equal weights lead to is among them."""
        bench, options, random = require_bench(bench), Knapsack(request, scores), Random(self.seed)
        losses = _Losses(bench, options, scores, self.calibration_tokens)
        places = len(options.places)
        starts = [[1.0] * places, *losses.measured_weights()]
        best = min(starts, key=lambda one: losses.of(options.best(one)))
        chosen = options.best(best)
        for index in range(self.steps):
            sure = random.randrange(places)
            weights = [
                one * self.factor ** random.uniform(-1, 1)
                if place == sure or random.random() < self.change_ratio
                else one
                for place, one in enumerate(best)
            ]
            other = options.best(weights)
            if losses.of(other) < losses.of(chosen):
                best, chosen = weights, other
            bench.progress(index + 1, self.steps, "weights of the layers tried")
        return options.shape_with(chosen)


class _Losses:
    """Mean next-token losses, over the first calibration tokens, of a model narrowed as chosen."""

    def __init__(self, bench: Bench, options: Knapsack, scores: Scores, tokens: int) -> None:
        self.bench, self.options = bench, options
        self.probe = WidthProbe(bench, scores, options.places)
        self.samples = bench.input_ids[: max(1, tokens // bench.input_ids.shape[1])]
        self.batches = self.samples.split(max(1, BATCH_TOKENS // self.samples.shape[1]))
        self.found: dict[tuple[int, ...], float] = {}

    def of(self, chosen: Sequence[int]) -> float:
        """The loss with these options taken, run once for each choice; infinite where it overflows."""
        key = tuple(chosen)
        if key not in self.found:
            with self.probe.narrowed(self.options.widths(chosen)):
                loss = sum(self._share(ids, self.probe.ablation.logits(ids)) for ids in self.batches)
            self.found[key] = loss if math.isfinite(loss) else math.inf
        return self.found[key]

    def measured_weights(self) -> list[list[float]]:
        """Of each place the growth of the loss if it alone is narrowed, over its error there.

        Once to half its blocks, once to the fewest. No place weighs less than LEAST of the median, as one
        does without which the loss is no higher. A loss that is not finite raises StageFailed.
        """
        ablation, options = self.probe.ablation, self.options
        whole = [len(counts) - 1 for counts in options.counts]
        levels = [[most // 2 for most in whole], [0] * len(whole)]
        growth = [[0.0] * len(whole) for _ in levels]
        for done, ids in enumerate(self.batches):
            with self.probe.narrowed(options.widths(whole)):
                stream = ablation.inputs(ids)
                dense = self._share(ids, ablation.logits(ids, start=len(stream) - 1, hidden=stream[-1]))
            for place, (_, layer) in enumerate(options.places):
                for level, found in zip(levels, growth, strict=True):
                    narrowed = [*whole[:place], level[place], *whole[place + 1 :]]
                    with self.probe.narrowed(options.widths(narrowed)):
                        start = self.bench.first + layer
                        logits = ablation.logits(ids, start=start, hidden=stream[start])
                    found[place] += self._share(ids, logits) - dense
            self.bench.progress(done + 1, len(self.batches), "batches with one part narrowed at a time")
        if not all(math.isfinite(one) for found in growth for one in found):
            raise overflow_error("the loss of the model with a layer narrowed")
        return [self._weights(*pair) for pair in zip(levels, growth, strict=True)]

    def _weights(self, level: list[int], growth: list[float]) -> list[float]:
        errors = [float(losses[option]) for losses, option in zip(self.options.losses, level, strict=True)]
        ratios = [one / error if error > 0 else 0.0 for one, error in zip(growth, errors, strict=True)]
        least = LEAST * statistics.median([one for one in ratios if one > 0] or [1.0])
        return [max(one, least) for one in ratios]

    def _share(self, ids: Tensor, logits: Tensor) -> float:
        """A batch's share of the mean loss."""
        return next_token_loss(logits, ids) * len(ids) / len(self.samples)
