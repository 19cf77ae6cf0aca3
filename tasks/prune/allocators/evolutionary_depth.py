"""EvoPress's depth pruning: which layers or sublayers go, by evolutionary search (arXiv 2410.14649).

Each unit has two levels, it stays or it goes. As many attention sublayers go as FFN sublayers, each kind by
itself (`sublayers`), or both of a layer at once (`layers`, the authors' `drop_entire_block`): as few as the
target allows, one fewer of one kind where that still fits. The search starts from the fittest of random
candidates; a child takes a unit back and lets another of its kind go, up to three times, and children are
compared by the KL divergence of their logits from the uncut model's. Scores are not used.

The defaults are the budget of the authors' script (scripts/run_drop_search.sh, IST-DASLab/EvoPress at
50888a0). Attention by which caches measure their length never goes (tasks/models/shape.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import StageFailed
from resprout.tasks.models.ablation import Ablation
from resprout.tasks.models.shape import DepthUnit, Shape, caches_work, depth_units, without
from resprout.tasks.prune.budget import require_bench
from resprout.tasks.prune.interfaces import Bench, Kinds, Request, Scores, require
from resprout.tasks.prune.search import ATTEMPTS, Candidate, Divergence, evolve, parse_stages

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EvolutionaryDepth:
    """Which layers or sublayers go, by search: the logits come closer to the uncut model's."""

    per_layer: ClassVar[bool] = False
    runs_model: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("layers", "sublayers")

    generations: int = 0
    """Rounds of the search; 0: k (n - k) / 1.5 where k of n layers go, as in the authors' script."""
    children: int = 32
    """Candidates tried in each generation."""
    survivors: str = "2,1"
    """How many candidates each comparison of a generation leaves; the last leaves one."""
    tokens: str = "2048,32768"
    """Calibration tokens of each comparison, all there are where fewer."""
    initial: int = 64
    """Random candidates of which the fittest is the first parent, compared on the first of `tokens`."""
    seed: int = 17
    """Of the candidates and of the samples that are compared on."""

    def __post_init__(self) -> None:
        require("evolutionary_depth", 0, generations=self.generations, seed=self.seed)
        require("evolutionary_depth", 1, children=self.children, initial=self.initial)
        parse_stages("evolutionary_depth", self.survivors, self.tokens)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The request's shape with widths of 0 where something went."""
        (kind,) = request.kinds
        bench, random = require_bench(bench), Random(self.seed)
        shape, ablation = request.shape, Ablation(bench.model)
        places = [block for block in depth_units(shape, kind) if block.sublayers]
        plan = parse_stages("evolutionary_depth", self.survivors, self.tokens)
        removed = removed_counts(request, places)
        most = max(removed.values())
        if not most:
            return shape

        def removed_by(candidate: Candidate) -> list[DepthUnit]:
            return [block for block, level in zip(places, candidate, strict=True) if not level]

        def logits(candidate: Candidate, ids: Tensor) -> Tensor:
            return ablation.logits(ids, removed_by(candidate))

        divergence = Divergence(ablation, bench.input_ids, logits, random)

        def fitness(candidates: Sequence[Candidate], tokens: int) -> list[float]:
            alive = [one for one in candidates if caches_work(without(shape, removed_by(one)))]
            losses = dict(zip(alive, divergence.of(alive, tokens), strict=True))
            return [losses.get(one, math.inf) for one in candidates]

        starts = _starts(places, removed, self.initial, random)
        losses = fitness(starts, plan[0].tokens)
        start = min(range(len(starts)), key=lambda one: (losses[one], one))
        if not math.isfinite(losses[start]):
            raise StageFailed(
                f"none of {len(starts)} random choices of {kind} leaves a model that computes; raise the "
                "target, or give prune.allocator: lowest_first"
            )
        best = evolve(
            starts[start],
            [[block.row] for block in places],
            [0] * len(places),
            fitness,
            plan,
            self.generations or max(1, int(most * (shape.layers - most) / 1.5)),
            self.children,
            random,
            bench.progress,
        )
        return without(shape, removed_by(best))


def removed_counts(request: Request, places: Sequence[DepthUnit]) -> dict[int, int]:
    """Return how many units of each row of scores go: as many of each, as few as fit whichever they are."""
    shape = request.shape
    rows: dict[int, list[DepthUnit]] = {}
    for block in sorted(places, key=lambda one: shape.params - without(shape, [one]).params):
        rows.setdefault(block.row, []).append(block)

    def left(counts: Sequence[int]) -> Shape:
        smallest = [row[:count] for row, count in zip(rows.values(), counts, strict=True)]
        return without(shape, [block for row in smallest for block in row])

    for most in range(1, max(map(len, rows.values())) + 1):
        found = [one for one in product((most - 1, most), repeat=len(rows)) if request.fits(left(one))]
        if found:
            best = max(found, key=lambda counts: left(counts).params)
            return {row: min(count, len(rows[row])) for row, count in zip(rows, best, strict=True)}
    raise ValueError("a request that cannot be met is refused before it is spent")


def _starts(
    places: Sequence[DepthUnit], removed: dict[int, int], wanted: int, random: Random
) -> list[Candidate]:
    """Different random candidates, as many as `wanted` where there are so many."""
    rows = {row: [place for place, block in enumerate(places) if block.row == row] for row in removed}
    found: dict[Candidate, None] = {}
    for _ in range(ATTEMPTS * wanted):
        drawn = {place for row, count in removed.items() for place in random.sample(rows[row], count)}
        found[tuple(int(place not in drawn) for place in range(len(places)))] = None
        if len(found) == wanted:
            break
    return list(found)
