"""EvoPress: level switches between layers, kept where the logits stay closer (arXiv 2410.14649).

The search starts from equal shares. In each generation children of the best candidate so far move blocks of
units from one layer to another, at the same number of parameters; they are compared by the KL divergence of
their logits from the uncut model's, on few tokens at first and on more the fewer are left. A candidate is
tried by zeros in the input features of the readers, which computes what the cut model would.

The paper searches levels of unstructured sparsity and of quantisation; here levels are blocks of units. The
defaults are the budget of the authors' script for sparsity (scripts/run_prune_search.sh, IST-DASLab/EvoPress
at 50888a0). Whole layers and sublayers are searched by `evolutionary_depth`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.prune.budget import require_bench, shape_with, sizes_of, spend_shares
from resprout.tasks.prune.interfaces import Bench, Kinds, Request, Scores, Shape, Unit, require
from resprout.tasks.prune.search import Candidate, Divergence, WidthProbe, evolve, parse_stages
from resprout.tasks.prune.target import least

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Evolutionary:
    """Widths by search: blocks move between layers while the logits come closer to the uncut model's."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True
    narrows: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    generations: int = 400
    """Rounds of the search."""
    children: int = 64
    """Candidates tried in each generation."""
    survivors: str = "8,2,1"
    """How many candidates each comparison of a generation leaves; the last leaves one."""
    tokens: str = "2048,16384,65536"
    """Calibration tokens of each comparison, all there are where fewer."""
    seed: int = 17
    """Of the moves and of the samples that are compared on."""

    def __post_init__(self) -> None:
        require("evolutionary", 0, generations=self.generations)
        require("evolutionary", 1, children=self.children)
        require("evolutionary", 0, seed=self.seed)
        parse_stages("evolutionary", self.survivors, self.tokens)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The widths that the search ends with, at the parameters of equal shares."""
        shape = request.shape
        start = spend_shares(request, dict.fromkeys(request.kinds, [1.0] * shape.layers))
        places = [(kind, layer) for kind in request.kinds for layer in range(shape.layers)]
        blocks = [sizes_of(request, layer, kind) for kind, layer in places]
        placed = list(zip(places, blocks, strict=True))
        levels = tuple(_level(sizes, start.counts(kind)[layer]) for (kind, layer), sizes in placed)
        costs = [[size * shape.unit_params(kind, layer) for size in sizes] for (kind, layer), sizes in placed]
        fewest = [_level(sizes, least(request, kind, layer)) for (kind, layer), sizes in placed]
        bench, random = require_bench(bench), Random(self.seed)
        widths = _Widths(bench, scores, places, blocks)
        divergence = Divergence(widths.probe.ablation, bench.input_ids, widths.logits, random)
        best = evolve(
            levels,
            costs,
            fewest,
            divergence.of,
            parse_stages("evolutionary", self.survivors, self.tokens),
            self.generations,
            self.children,
            random,
            bench.progress,
        )
        return shape_with(shape, places, widths.counts(best))


class _Widths:
    """The widths that the levels of `places` stand for, and the model at those widths."""

    def __init__(
        self, bench: Bench, scores: Scores, places: list[tuple[Unit, int]], blocks: list[list[int]]
    ) -> None:
        self.probe, self.blocks = WidthProbe(bench, scores, places), blocks

    def logits(self, candidate: Candidate, ids: Tensor) -> Tensor:
        """Logits [rows, tokens, vocab] of the model at the candidate's widths."""
        with self.probe.narrowed(self.counts(candidate)):
            return self.probe.ablation.logits(ids)

    def counts(self, candidate: Candidate) -> list[int]:
        """Units that each place keeps."""
        return [sum(sizes[:level]) for sizes, level in zip(self.blocks, candidate, strict=True)]


def _level(sizes: list[int], count: int) -> int:
    """Return how many blocks hold `count` units."""
    return next(level for level in range(len(sizes) + 1) if sum(sizes[:level]) >= count)
