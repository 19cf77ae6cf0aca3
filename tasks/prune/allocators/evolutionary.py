"""EvoPress: level switches between layers, kept where the logits stay closer (arXiv 2410.14649).

The search starts from equal shares. In each generation children of the best candidate so far move blocks of
units from one layer to another, at the same number of parameters; they are compared by the KL divergence of
their logits from the uncut model's, on few tokens at first and on more the fewer are left. A candidate is
tried by zeros in the input features of the readers, which computes what the cut model would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.models.trial import BATCH_TOKENS
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.evolution import Candidate, evolve, stages
from resprout.tasks.prune.spend import given, overflow, sizes_of, spend_shares
from resprout.tasks.prune.target import fewest
from resprout.tasks.prune.tried import Tried

if TYPE_CHECKING:
    from resprout.tasks.prune.contracts import Bench, Request, Scores


@dataclass(frozen=True)
class Evolutionary:
    """Widths by search: blocks move between layers while the logits come closer to the uncut model's."""

    per_layer: ClassVar[bool] = True
    tries: ClassVar[bool] = True
    narrows: ClassVar[bool] = True
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    generations: int = 50
    """Rounds of the search."""
    children: int = 16
    """Candidates tried in each generation."""
    stages: int = 3
    """Comparisons in each generation; the last leaves one."""
    first_tokens: int = 512
    """Calibration tokens of the first comparison."""
    growth: int = 4
    """Each comparison looks at this many times more tokens and lets one in so many on."""
    seed: int = 17
    """Of the moves and of the samples that are compared on."""

    def __post_init__(self) -> None:
        require("evolutionary", 0, generations=self.generations)
        require("evolutionary", 1, children=self.children, stages=self.stages, growth=self.growth)
        require("evolutionary", 1, first_tokens=self.first_tokens)
        require("evolutionary", 0, seed=self.seed)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The widths that the search ends with, at the parameters of equal shares."""
        shape = request.shape
        start = spend_shares(request, dict.fromkeys(request.kinds, [1.0] * shape.layers))
        places = [(kind, layer) for kind in request.kinds for layer in range(shape.layers)]
        blocks = [sizes_of(request, layer, kind) for kind, layer in places]
        costs = [
            [size * shape.unit_params(kind, layer) for size in sizes]
            for (kind, layer), sizes in zip(places, blocks, strict=True)
        ]
        levels = tuple(
            _level(sizes, start.counts(kind)[layer])
            for (kind, layer), sizes in zip(places, blocks, strict=True)
        )
        tried = _Divergences(given(bench), scores, places, blocks, self.seed)
        best = evolve(
            levels,
            costs,
            [fewest(shape, kind) for kind, _ in places],
            tried.of,
            stages(self.children, self.stages, self.first_tokens, self.growth),
            self.generations,
            self.children,
            tried.random,
            tried.bench.progress,
        )
        for kind in request.kinds:
            counts = [
                count for (one, _), count in zip(places, tried.counts(best), strict=True) if one == kind
            ]
            shape = shape.with_counts(kind, counts)
        return shape


class _Divergences:
    """Divergences of candidates, each the levels of `places`, on drawn calibration samples."""

    def __init__(
        self,
        bench: Bench,
        scores: Scores,
        places: list[tuple[Unit, int]],
        blocks: list[list[int]],
        seed: int,
    ) -> None:
        self.bench, self.blocks = bench, blocks
        self.tried = Tried(bench, scores, places)
        self.trial = self.tried.trial
        self.random = Random(seed)
        self.ends: dict[int, Tensor] = {}

    def of(self, candidates: Sequence[Candidate], tokens: int) -> list[float]:
        """KL(uncut || candidate) in nats a token, on about `tokens` tokens drawn anew."""
        ids, length = self.bench.input_ids, self.bench.input_ids.shape[1]
        drawn = sorted(self.random.sample(range(len(ids)), min(len(ids), max(1, -(-tokens // length)))))
        rows = max(1, BATCH_TOKENS // length)
        found = [0.0] * len(candidates)
        for batch in (drawn[first : first + rows] for first in range(0, len(drawn), rows)):
            uncut = self._uncut(batch)
            for index, candidate in enumerate(candidates):
                with self.tried.narrowed(self.counts(candidate)):
                    tried = self.trial.logits(ids[batch]).float().log_softmax(dim=-1)
                found[index] += (uncut.exp() * (uncut - tried)).sum().item() / len(drawn) / length
        # Of a candidate that overflows nothing is known but that it is no good.
        return [one if math.isfinite(one) else math.inf for one in found]

    def counts(self, candidate: Candidate) -> list[int]:
        """Units that each place keeps."""
        return [sum(sizes[:level]) for sizes, level in zip(self.blocks, candidate, strict=True)]

    def _uncut(self, batch: list[int]) -> Tensor:
        """Log probabilities of the uncut model, whose layers run once for each sample."""
        ids = self.bench.input_ids[batch]
        for sample in batch:
            if sample not in self.ends:
                self.ends[sample] = self.trial.inputs(self.bench.input_ids[[sample]])[-1]
        end = torch.cat([self.ends[sample] for sample in batch])
        layers = len(self.trial.parts.layers)
        uncut = self.trial.logits(ids, start=layers, hidden=end).float().log_softmax(dim=-1)
        if not uncut.isfinite().all():
            raise overflow("a log probability of the model")
        return uncut


def _level(sizes: list[int], count: int) -> int:
    """How many blocks make `count` units."""
    return next(level for level in range(len(sizes) + 1) if sum(sizes[:level]) == count)
