"""Searches that run the model: greedy removal, evolution of candidates, and how candidates are compared.

Greedy removal takes units of depth out one at a time, each time the one that changes least. Up to the changed
layer the residual stream is that of the round, which is kept for one batch at a time, so a round costs half a
forward pass for each unit rather than a whole one.

Evolutionary search (EvoPress, Sieberling et al., arXiv 2410.14649) is over levels at a constant budget.
`evolve` knows nothing of models: a candidate is a tuple of levels, one for each place, and its caller says
how much worse than the optimum a candidate is. Allocators `evolutionary` and `evolutionary_depth` give it
widths and layers.

A candidate width is evaluated by zeroing the inputs of readers (`WidthProbe`), which computes what the cut
model would, without cutting weights; candidates are compared by the KL divergence of their logits
(`Divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.presets import Unit
from resprout.tasks.core.job import Progress
from resprout.tasks.models.ablation import BATCH_TOKENS, Ablation
from resprout.tasks.models.anatomy import Part
from resprout.tasks.models.shape import DepthUnit, depth_units, shape_of
from resprout.tasks.prune.budget import overflow_error
from resprout.tasks.prune.interfaces import Bench, LayerScores, Model, Scores

Candidate = tuple[int, ...]
ATTEMPTS = 100
"""Draws for each child that is wanted, before the search takes it that there are no more."""
Seen = Callable[[Ablation, Tensor, list[DepthUnit], int, Tensor], Tensor]
"""Of a run the tensor that is compared: `(ablation, ids, removed, start, stream in front of layer start)` to
[rows, tokens, features]; `start` may be the number of layers."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Of two runs, float32 [rows, tokens, features] each: [rows, tokens]."""


def logits(ablation: Ablation, ids: Tensor, removed: list[DepthUnit], start: int, stream: Tensor) -> Tensor:
    """The model's logits."""
    return ablation.logits(ids, removed, start, stream)


def last_stream(
    ablation: Ablation, ids: Tensor, removed: list[DepthUnit], start: int, stream: Tensor
) -> Tensor:
    """The residual stream behind the last layer, in front of the last norm."""
    if start == len(ablation.parts.layers):
        return stream
    return ablation.inputs(ids, removed, start, stream)[-1]


def removal_ranks(
    model: Model,
    kind: Unit,
    input_ids: Tensor,
    removed_ratio: float,
    seen: Seen,
    distance: Distance,
    progress: Progress,
    spared: float = 0.0,
) -> LayerScores:
    """Ranks of removal: float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers.

    In every round each unit that is still there is left out by itself, what is `seen` is compared with the
    uncut model's, and the unit that changes it least leaves: 0 for the first to go, 1 for the second, and so
    on. After `removed_ratio` of all units (and at least one) the rest follow in the order of what the last
    round measured of them; what may never be removed ranks behind all others.

    The first layers, up to the share `spared` of them, are no candidates until that share of the units is
    removed; where they never become so they rank behind the others, the first of them last.
    """
    shape = shape_of(model.config.to_dict())
    left = list(depth_units(shape, kind))
    removed: list[DepthUnit] = []
    rounds = min(len(left), max(1, math.ceil(len(left) * removed_ratio)))
    last, total = len(left), len(left)
    front = math.floor(spared * shape.layers) if spared else -1
    late = [unit for unit in left if unit.layer <= front]
    left = [unit for unit in left if unit.layer > front]
    dense = _Batches(model, input_ids, seen)
    order: list[DepthUnit] = []
    for index in range(rounds):
        if late and (not left or index > math.floor(spared * total)):
            left, late = [*late, *left], []
        changes = dense.changes(removed, left, distance)
        order = [left[one] for one in changes.sort(stable=True).indices.tolist()]
        removed.append(order[0])
        left.remove(order[0])
        progress(index + 1, rounds, f"{kind} removed in trial")
    rows = 1 if kind == "layers" else 2
    scores = [{kind: torch.full((rows, 1), float(last))} for _ in range(shape.layers)]
    for rank, unit in enumerate([*removed, *order[1:], *reversed(late)]):
        scores[unit.layer][kind][unit.row] = rank
    return scores


class _Batches:
    """Calibration tokens in batches, with the uncut model's residual stream behind its last layer."""

    def __init__(self, model: Model, ids: Tensor, seen: Seen) -> None:
        self.ablation, self.seen = Ablation(model), seen
        self.layers = len(self.ablation.parts.layers)
        self.ids = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
        self.ends = [self.ablation.inputs(ids)[-1] for ids in self.ids]

    def changes(self, removed: list[DepthUnit], candidates: list[DepthUnit], distance: Distance) -> Tensor:
        """Summed distance once each of `candidates` goes beside `removed`: float64 [candidates]."""
        found = torch.zeros(len(candidates), dtype=torch.float64)
        for ids, end in zip(self.ids, self.ends, strict=True):
            uncut = self.seen(self.ablation, ids, [], self.layers, end).float()
            stream = self.ablation.inputs(ids, removed)
            for index, unit in enumerate(candidates):
                cut = self.seen(self.ablation, ids, [*removed, unit], unit.layer, stream[unit.layer])
                found[index] += distance(uncut, cut.float()).double().sum().cpu()
        return found


@dataclass(frozen=True)
class Comparison:
    """A comparison of children: how many survive it, and on how many tokens."""

    survivors: int
    tokens: int


def parse_stages(method: str, survivors: str, tokens: str) -> list[Comparison]:
    """The comparisons that two settings of a method list, whole numbers between commas.

    Raises:
        BadInput: not as many of each, one that is no number from 1 up, or a last stage that leaves several.
    """
    found = [[one.strip() for one in text.split(",")] for text in (survivors, tokens)]
    numbers = all(one.isascii() and one.isdigit() and int(one) > 0 for each in found for one in each)
    if not numbers or len(found[0]) != len(found[1]) or int(found[0][-1]) != 1:
        raise BadInput(
            f"'{method}' has survivors: '{survivors}' and tokens: '{tokens}'; give as many whole numbers of "
            "each, with commas between them, the last survivor 1, as in '4,1' and '512,2048'"
        )
    return [Comparison(int(left), int(seen)) for left, seen in zip(*found, strict=True)]


def evolve(
    start: Candidate,
    costs: Sequence[Sequence[int]],
    fewest: Sequence[int],
    fitness: Callable[[Sequence[Candidate], int], list[float]],
    plan: Sequence[Comparison],
    generations: int,
    children: int,
    random: Random,
    progress: Callable[[int, int, str], None],
) -> Candidate:
    """The fittest candidate after all generations.

    `costs` are what each level of each place costs beyond the level below it; a child raises one place by a
    level and lowers another by one of the same cost, up to three times, so that all candidates cost the same.
    `fitness` gives the losses of some candidates on that many tokens, all on the same ones. The parent stands
    beside the children in the last stage, so that it is only replaced by what is better there.
    """
    parent = start
    for generation in range(generations):
        alive = _children(parent, costs, fewest, children, random)
        for index, stage in enumerate(plan):
            if index == len(plan) - 1:
                alive = [parent, *alive]
            if len(alive) <= stage.survivors:
                continue
            losses = fitness(alive, stage.tokens)
            best = sorted(range(len(alive)), key=lambda one: (losses[one], one))[: stage.survivors]
            alive = [alive[one] for one in best]
        parent = alive[0]
        progress(generation + 1, generations, "generations")
    return parent


def _children(
    parent: Candidate, costs: Sequence[Sequence[int]], fewest: Sequence[int], wanted: int, random: Random
) -> list[Candidate]:
    found: dict[Candidate, None] = {}
    for _ in range(ATTEMPTS * wanted):
        if len(found) == wanted:
            break
        child = parent
        # The smaller of two draws: one switch is the likeliest.
        for _ in range(min(random.randint(1, 3), random.randint(1, 3))):
            child = _switched(child, costs, fewest, random)
        if child != parent:
            found[child] = None
    return list(found)


def _switched(
    candidate: Candidate, costs: Sequence[Sequence[int]], fewest: Sequence[int], random: Random
) -> Candidate:
    """A level from a place that may lose it to another that may take it; the candidate where none may."""
    downs = [place for place, level in enumerate(candidate) if level > fewest[place]]
    if not downs:
        return candidate
    down = random.choice(downs)
    cost = costs[down][candidate[down] - 1]
    ups = [
        place
        for place, level in enumerate(candidate)
        if place != down and level < len(costs[place]) and costs[place][level] == cost
    ]
    if not ups:
        return candidate
    up = random.choice(ups)
    levels = list(candidate)
    levels[down] -= 1
    levels[up] += 1
    return tuple(levels)


class Divergence:
    """KL(uncut || candidate) in nats a token, on calibration samples drawn for each comparison.

    `input_ids` int64 [samples, tokens]; `logits(candidate, ids)` are a candidate's [rows, tokens, vocab].
    """

    def __init__(
        self,
        ablation: Ablation,
        input_ids: Tensor,
        logits: Callable[[Candidate, Tensor], Tensor],
        random: Random,
    ) -> None:
        self.ablation, self.ids, self.logits, self.random = ablation, input_ids, logits, random
        self.ends: dict[int, Tensor] = {}

    def of(self, candidates: Sequence[Candidate], tokens: int) -> list[float]:
        """The divergence of each on about `tokens` tokens, the same for all; all there are where fewer."""
        ids, length = self.ids, self.ids.shape[1]
        drawn = sorted(self.random.sample(range(len(ids)), min(len(ids), max(1, -(-tokens // length)))))
        rows = max(1, BATCH_TOKENS // length)
        found = [0.0] * len(candidates)
        for batch in (drawn[first : first + rows] for first in range(0, len(drawn), rows)):
            uncut = self._uncut(batch)
            for index, candidate in enumerate(candidates):
                moved = self.logits(candidate, ids[batch]).float().log_softmax(dim=-1)
                found[index] += (uncut.exp() * (uncut - moved)).sum().item() / len(drawn) / length
        # Of a candidate that overflows nothing is known but that it is no good.
        return [one if math.isfinite(one) else math.inf for one in found]

    def _uncut(self, batch: list[int]) -> Tensor:
        """Log probabilities of the uncut model, whose layers run once for each sample."""
        for sample in batch:
            if sample not in self.ends:
                self.ends[sample] = self.ablation.inputs(self.ids[[sample]])[-1]
        end = torch.cat([self.ends[sample] for sample in batch])
        layers = len(self.ablation.parts.layers)
        uncut = self.ablation.logits(self.ids[batch], start=layers, hidden=end).float().log_softmax(dim=-1)
        if not uncut.isfinite().all():
            raise overflow_error("a log probability of the model")
        return uncut


class WidthProbe:
    """The bench's model with fewer units: of each of `places` only the best are read."""

    def __init__(self, bench: Bench, scores: Scores, places: Sequence[tuple[Unit, int]]) -> None:
        self.ablation = Ablation(bench.model)
        layers = bench.among(self.ablation.parts.layers)
        self.readers = [layers[layer].reader(kind) for kind, layer in places]
        self.ranks = [
            _ranks(layers[layer].part(kind), scores[layer][kind]).to(bench.model.device)
            for kind, layer in places
        ]
        self.dense = [len(scores[layer][kind]) // layers[layer].part(kind).blocks for kind, layer in places]

    @contextmanager
    def narrowed(self, counts: Sequence[int]) -> Iterator[None]:
        """Each place keeps this many units, of heads in each group, while the context is open."""
        with ExitStack() as hooks:
            for reader, ranks, dense, count in zip(self.readers, self.ranks, self.dense, counts, strict=True):
                if count < dense:
                    hooks.callback(reader.register_forward_pre_hook(_zeros(ranks < count)).remove)
            yield


def _zeros(kept: Tensor) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0] * kept.to(inputs[0].dtype), *inputs[1:]

    return hook


def _ranks(part: Part, scores: Tensor) -> Tensor:
    """The rank of the unit that each feature belongs to, among its block's, the best 0: int64 [features]."""
    order = scores.mean(dim=1).view(part.blocks, -1).sort(dim=1, descending=True, stable=True).indices
    return order.argsort(dim=1).flatten().repeat_interleave(part.features_per_unit)
