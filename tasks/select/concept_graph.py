"""Concept consistency graph: choose rows whose concepts do not conflict (PASER, section 3.3)."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, compress, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from resprout.tasks.data.words import MARKS
from resprout.tasks.select.min_hash import held_in


class ConsistencyGraph(Protocol):
    """Concepts as vertices; an edge joins two that an accepted row holds together."""

    def conflicts(self, concepts: Sequence[str]) -> int:
        """Pairs of a row's concepts that are both known but were never seen together."""
        ...

    def add(self, concepts: Sequence[str]) -> None:
        """All concepts of an accepted row become vertices and all their pairs edges."""
        ...


class GraphOfManyConcepts:
    """A graph for rows of any number of concepts.

    Two concepts are joined where they share an accepted row. Concepts of the same rows are a class, which
    keeps the rows. Edges themselves are of the order of a row's concepts squared, a million for one of 1,440.
    """

    def __init__(self) -> None:
        self._class: dict[str, int] = {}
        self._rows, self._size = list[set[int]](), list[int]()
        self._accepted = 0

    def conflicts(self, concepts: Sequence[str]) -> int:
        # Concepts of one class are joined to each other and alike to all others, so they count as one.
        counts = Counter(self._class[concept] for concept in set(concepts) if concept in self._class)
        return sum(
            counts[first] * counts[second]
            for first, second in combinations(counts, 2)
            if self._rows[first].isdisjoint(self._rows[second])
        )

    def add(self, concepts: Sequence[str]) -> None:
        held = set(concepts)
        parts = Counter(map(self._class.get, held))
        into = {old: self._with_row(old, count) for old, count in parts.items()}
        self._class |= {concept: into[self._class.get(concept)] for concept in held}
        self._accepted += 1

    def _with_row(self, old: int | None, count: int) -> int:
        """The class of `count` concepts of an old one, or of none yet, that the row holds too."""
        if old is not None and count == self._size[old]:
            self._rows[old].add(self._accepted)
            return old
        before = set[int]()
        if old is not None:
            self._size[old] -= count
            before = self._rows[old]
        self._rows.append({*before, self._accepted})
        self._size.append(count)
        return len(self._rows) - 1


class GraphOfFewConcepts:
    """A graph for rows of few concepts: a set of edges, which any number of rows may be added to."""

    def __init__(self) -> None:
        self._vertices: dict[str, int] = {}
        self._edges = set[tuple[int, int]]()

    def conflicts(self, concepts: Sequence[str]) -> int:
        known = {self._vertices[concept] for concept in concepts if concept in self._vertices}
        return sum(pair not in self._edges for pair in combinations(sorted(known), 2))

    def add(self, concepts: Sequence[str]) -> None:
        numbers = {self._vertices.setdefault(concept, len(self._vertices)) for concept in concepts}
        self._edges.update(combinations(sorted(numbers), 2))


@dataclass
class Outcome:
    """`reasons` says of each accepted row why, `refusals` of each other; counts are by cluster."""

    considered: list[int]
    rejected: list[int]
    readmitted: list[int]
    filled: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, clusters: int) -> Outcome:
        """No row looked at yet."""
        return cls([0] * clusters, [0] * clusters, [0] * clusters, [0] * clusters)

    def accept(self, row: int, cluster: int, cost: int, reason: str) -> None:
        """Take a row of a cluster."""
        self.reasons[row] = reason
        self.refusals.pop(row, None)
        self.filled[cluster] += cost


CONSISTENT = "consistent, most efficient of its cluster"
READMITTED = "re-admitted: fewest conflicts of its cluster"
TOPPED_UP = "fills what the clusters left"
BEYOND = "does not fit what is left of its cluster's budget"


def choose_consistent(
    graph: ConsistencyGraph,
    clusters: Sequence[Sequence[int]],
    grants: Sequence[int],
    costs: Sequence[int] | NDArray[np.int64],
    concepts: Mapping[int, Sequence[str]] | Sequence[Sequence[str]],
    order: Sequence[int],
    ends: bool = False,
) -> Outcome:
    """The literal rule: in each cluster, by rank, rows that conflict with nothing accepted, while they fit.

    A row is accepted iff each pair of its concepts is an edge already, or not both are known vertices; then
    it is added to `graph`.

    Args:
        graph: A graph without a row.
        clusters: For each cluster its rows, best first.
        grants: What each cluster may fill.
        costs: What each row takes of it.
        concepts: Concepts of each row.
        order: Clusters in the order in which they are served.
        ends: A row that does not fit ends its cluster; else it is passed over.
    """
    outcome = Outcome.empty(len(clusters))
    for k in order:
        for place, row in enumerate(clusters[k]):
            if outcome.filled[k] + costs[row] > grants[k]:
                beyond = clusters[k][place:] if ends else [row]
                outcome.refusals |= dict.fromkeys(beyond, BEYOND)
                if ends:
                    break
                continue
            outcome.considered[k] += 1
            conflicts = graph.conflicts(concepts[row])
            if conflicts:
                outcome.rejected[k] += 1
                outcome.refusals[row] = f"{conflicts} pairs of its concepts contradict accepted rows"
            else:
                graph.add(concepts[row])
                outcome.accept(row, k, int(costs[row]), CONSISTENT)
    return outcome


def readmit(
    outcome: Outcome,
    graph: ConsistencyGraph,
    clusters: Sequence[Sequence[int]],
    grants: Sequence[int],
    costs: Sequence[int] | NDArray[np.int64],
    concepts: Mapping[int, Sequence[str]] | Sequence[Sequence[str]],
    order: Sequence[int],
    budget: int,
) -> None:
    """Fill what the literal rule left: each cluster by its least conflicting rows, then the whole budget.

    Changes `outcome` and `graph`. Afterwards no row left out fits into what is left of the budget. Ours,
    not the paper's.
    """
    rank = {row: place for rows in clusters for place, row in enumerate(rows)}

    def least_conflicting(rows: Iterable[int]) -> list[int]:
        conflicts = {row: graph.conflicts(concepts[row]) for row in rows if row not in outcome.reasons}
        return sorted(conflicts, key=lambda row: (conflicts[row], rank[row], row))

    for k in order:
        for row in least_conflicting(clusters[k]):
            if outcome.filled[k] + costs[row] <= grants[k]:
                graph.add(concepts[row])
                outcome.accept(row, k, int(costs[row]), READMITTED)
                outcome.readmitted[k] += 1
    of = {row: k for k, rows in enumerate(clusters) for row in rows}
    left = budget - sum(outcome.filled)
    for row in least_conflicting(sorted(of)):
        if costs[row] <= left:
            graph.add(concepts[row])
            outcome.accept(row, of[row], int(costs[row]), TOPPED_UP)
            left -= int(costs[row])


_WORD = rf"\w+(?:[{MARKS}]+\w*)*"
_WORDS = re.compile(rf"{_WORD}(?:['’-]{_WORD})*|[^\w\s]|\n")
_ASCII_WORDS = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]|\n")
"""The same of ASCII, in less time."""

TOP = 3


def phrases(text: str) -> list[str]:
    """Candidate phrases of a text, best first: maximal runs of words without stop words or punctuation.

    A word scores degree / frequency, where its degree is the summed length of the phrases that it stands
    in; a phrase scores the sum of its words. Ties are in alphabetical order.
    """
    runs: list[list[str]] = [[]]
    pattern = _ASCII_WORDS if text.isascii() else _WORDS
    for token in pattern.findall(text.lower()):
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


def literal_concepts(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """All phrases of instruction, input and output of each row."""
    return [phrases(_text(row)) for row in rows]


def top_concepts(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> list[list[str]]:
    """The three best phrases of each row among those that occur in at least two of the rows.

    A phrase that one row alone has can never conflict, and with all phrases almost every row conflicts. Ours.

    Args:
        rows: Gives the rows; it is asked twice, and eight bytes of each phrase are held in between.
    """
    every = array("q")
    for row in rows():
        every.extend(map(hash, phrases(_text(row))))
    hashes = np.asarray(every)
    hashes.sort()
    shared = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def best(found: list[str]) -> list[str]:
        own = np.fromiter(map(hash, found), dtype=np.int64, count=len(found))
        return list(islice(compress(found, held_in(own, shared)), TOP)) if len(shared) else []

    return [best(phrases(_text(row))) for row in rows()]


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row.get(column) or "") for column in ("instruction", "input", "output"))
