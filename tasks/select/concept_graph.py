"""Concept consistency graph: choose rows whose concepts do not conflict (PASER, section 3.3)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS


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


_WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]|\n")

TOP = 3
MIN_DOCUMENTS = 2


def phrases(text: str) -> list[str]:
    """Candidate phrases of a text, best first: maximal runs of words without stop words or punctuation.

    A word scores degree / frequency, where its degree is the summed length of the phrases that it stands
    in; a phrase scores the sum of its words. Ties are in alphabetical order.
    """
    runs: list[list[str]] = [[]]
    for token in _WORDS.findall(text.lower()):
        if (token[0].isalnum() or token[0] == "_") and token not in ENGLISH_STOP_WORDS:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    frequency = Counter(word for run in runs for word in run)
    degree = Counter[str]()
    for run in runs:
        for word in run:
            degree[word] += len(run)
    scores = {" ".join(run): sum(degree[word] / frequency[word] for word in run) for run in runs}
    return sorted(scores, key=lambda phrase: (-scores[phrase], phrase))


def literal_concepts(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """All phrases of instruction, input and output of each row."""
    return [phrases(_text(row)) for row in rows]


def top_concepts(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The three best phrases of each row among those that occur in at least two rows.

    A phrase that one row alone has can never conflict, and with all phrases almost every row conflicts. Ours.
    """
    every = literal_concepts(rows)
    documents = Counter(phrase for found in every for phrase in found)
    return [[phrase for phrase in found if documents[phrase] >= MIN_DOCUMENTS][:TOP] for found in every]


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row.get(column) or "") for column in ("instruction", "input", "output"))
