"""Rows without contradictions: the concept consistency graph (PASER, section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


class ConsistencyGraph:
    """Concepts as vertices; an edge joins two that an accepted row holds together.

    Kept as each concept's accepted rows, the bits of an integer: two concepts are joined where they share a
    row. Edges themselves are of the order of a row's concepts squared, a million for a row of 1,440.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._accepted = 0

    def conflicts(self, concepts: Sequence[str]) -> int:
        """Pairs of a row's concepts that are both known but were never seen together."""
        # Concepts of the same rows are joined to each other and alike to all others, so they count as one.
        counts = Counter(self._rows[concept] for concept in set(concepts) if concept in self._rows)
        return sum(
            counts[first] * counts[second] for first, second in combinations(counts, 2) if not first & second
        )

    def add(self, concepts: Sequence[str]) -> None:
        """All concepts of an accepted row become vertices and all their pairs edges."""
        row = 1 << self._accepted
        self._accepted += 1
        for concept in concepts:
            self._rows[concept] = self._rows.get(concept, 0) | row


@dataclass
class Outcome:
    """`reasons` says of each accepted row why, `refusals` of each other; counts are by cluster."""

    considered: list[int]
    rejected: list[int]
    readmitted: list[int]
    filled: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)


CONSISTENT = "consistent, highest IES of its cluster"
READMITTED = "re-admitted: fewest conflicts of its cluster"
TOPPED_UP = "fills what the clusters left"
BEYOND = "does not fit what is left of its cluster's budget"


def choose_consistent(
    clusters: Sequence[Sequence[int]],
    grants: Sequence[int],
    tokens: NDArray[np.int64],
    concepts: Sequence[Sequence[str]],
    order: Sequence[int],
) -> tuple[Outcome, ConsistencyGraph]:
    """The literal rule: in each cluster, by rank, rows that conflict with nothing accepted, while they fit.

    A row is accepted iff each pair of its concepts is an edge already, or not both are known vertices.

    Args:
        clusters: For each cluster its rows, best first.
        grants: Tokens that each cluster may fill.
        tokens: Tokens of each row.
        concepts: Concepts of each row.
        order: Clusters in the order in which they are served.
    """
    graph, size = ConsistencyGraph(), len(clusters)
    outcome = Outcome([0] * size, [0] * size, [0] * size, [0] * size)
    for k in order:
        for row in clusters[k]:
            if outcome.filled[k] + tokens[row] > grants[k]:
                outcome.refusals[row] = BEYOND
                continue
            outcome.considered[k] += 1
            conflicts = graph.conflicts(concepts[row])
            if conflicts:
                outcome.rejected[k] += 1
                outcome.refusals[row] = f"{conflicts} pairs of its concepts contradict accepted rows"
            else:
                _accept(outcome, graph, row, k, tokens, concepts, CONSISTENT)
    return outcome, graph


def readmit(
    outcome: Outcome,
    graph: ConsistencyGraph,
    clusters: Sequence[Sequence[int]],
    grants: Sequence[int],
    tokens: NDArray[np.int64],
    concepts: Sequence[Sequence[str]],
    order: Sequence[int],
    budget: int,
) -> None:
    """Fill what the literal rule left: each cluster by its least conflicting rows, then the whole budget.

    Changes `outcome` and `graph`. Afterwards no row left out fits into what is left of the budget. Ours,
    not the paper's.
    """
    rank = {row: place for rows in clusters for place, row in enumerate(rows)}
    for k in order:
        for row in _least_conflicting(clusters[k], outcome, graph, concepts, rank):
            if outcome.filled[k] + tokens[row] <= grants[k]:
                _accept(outcome, graph, row, k, tokens, concepts, READMITTED)
                outcome.readmitted[k] += 1
    of = {row: k for k, rows in enumerate(clusters) for row in rows}
    for row in _least_conflicting(sorted(of), outcome, graph, concepts, rank):
        if sum(outcome.filled) + tokens[row] <= budget:
            _accept(outcome, graph, row, of[row], tokens, concepts, TOPPED_UP)


def _least_conflicting(
    rows: Sequence[int],
    outcome: Outcome,
    graph: ConsistencyGraph,
    concepts: Sequence[Sequence[str]],
    rank: dict[int, int],
) -> list[int]:
    left = [row for row in rows if row not in outcome.reasons]
    conflicts = {row: graph.conflicts(concepts[row]) for row in left}
    return sorted(left, key=lambda row: (conflicts[row], rank[row], row))


def _accept(
    outcome: Outcome,
    graph: ConsistencyGraph,
    row: int,
    cluster: int,
    tokens: NDArray[np.int64],
    concepts: Sequence[Sequence[str]],
    reason: str,
) -> None:
    outcome.reasons[row] = reason
    outcome.refusals.pop(row, None)
    outcome.filled[cluster] += int(tokens[row])
    graph.add(concepts[row])
