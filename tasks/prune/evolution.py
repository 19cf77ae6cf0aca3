"""Evolutionary search over levels at a constant budget (EvoPress, Sieberling et al., arXiv 2410.14649).

It knows nothing of models: a candidate is a tuple of levels, one for each place, and who calls it says how
much worse than the optimum a candidate is. Allocators `evolutionary` and `evolutionary_depth` give it widths
and layers to search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from resprout.configs.errors import BadInput

Candidate = tuple[int, ...]
ATTEMPTS = 100
"""Draws for each child that is wanted, before the search takes it that there are no more."""


@dataclass(frozen=True)
class Stage:
    """How many of the children go on, and how many tokens they are compared on."""

    survivors: int
    tokens: int


def stages(method: str, survivors: str, tokens: str) -> list[Stage]:
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
    return [Stage(int(left), int(seen)) for left, seen in zip(*found, strict=True)]


def evolve(
    start: Candidate,
    costs: Sequence[Sequence[int]],
    fewest: Sequence[int],
    fitness: Callable[[Sequence[Candidate], int], list[float]],
    plan: Sequence[Stage],
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
