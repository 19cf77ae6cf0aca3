"""How the budget is divided among clusters (PASER, section 3.2, equation for n_k)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def capability_degradation(jsd: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """CDS_k, the mean JSD over the rows of each cluster: [clusters]."""
    return np.bincount(labels, weights=jsd) / np.bincount(labels)


def shares(cds: Sequence[float]) -> list[Fraction]:
    """CDS_k / sum CDS as exact fractions; equal shares where all are zero (nothing was hurt)."""
    exact = [Fraction(float(value)) for value in cds]
    total = sum(exact)
    return [value / total if total else Fraction(1, len(exact)) for value in exact]


def floor_budget(budget: int, cds: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """n_k = floor(B CDS_k / sum CDS), at most the cluster's capacity; the paper's rule leaves a rest."""
    return [
        min(int(budget * share), capacity) for share, capacity in zip(shares(cds), capacities, strict=True)
    ]


def full_budget(budget: int, cds: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """As `floor_budget`, and what capped clusters leave goes to the others in the same proportion.

    What flooring leaves then goes to the largest remainders, so the sum is min(B, sum of capacities).
    Ours, not the paper's.

    Args:
        budget: B.
        cds: CDS_k.
        capacities: What each cluster holds, in the unit of B.
    """
    part = shares(cds)
    granted, open_, left = [0] * len(part), set(range(len(part))), budget
    while open_ and left > 0:
        weight = sum(part[k] for k in open_)
        wanted = {k: left * (part[k] / weight if weight else Fraction(1, len(open_))) for k in open_}
        capped = {k for k in open_ if wanted[k] >= capacities[k]}
        if not capped:
            return _largest_remainder(granted, wanted, capacities)
        for k in capped:
            granted[k] = capacities[k]
            left -= capacities[k]
        open_ -= capped
    return granted


def _largest_remainder(
    granted: list[int], wanted: dict[int, Fraction], capacities: Sequence[int]
) -> list[int]:
    total = int(sum(wanted.values()))
    for k, share in wanted.items():
        granted[k] = int(share)
    rest = total - sum(int(share) for share in wanted.values())
    by_remainder = sorted(wanted, key=lambda k: (int(wanted[k]) - wanted[k], k))
    for k in by_remainder[:rest]:
        granted[k] += 1  # wanted[k] < capacity, so rounding up still fits
    return granted


def worst_first(cds: NDArray[np.float64]) -> list[int]:
    """Clusters, the most degraded first, so that its concepts are the ones others must agree with."""
    return sorted(range(len(cds)), key=lambda k: (-cds[k], k))


def instruction_efficiency(jsd: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """IES = jsd / log((|x| + |y|)^2), lengths in tokens: degradation healed for the computation it costs."""
    return jsd / np.log(tokens.astype(np.float64) ** 2)


def answer_efficiency(
    jsd: NDArray[np.float64], answers: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Divergence summed over the answer, for each token of the row: jsd |y| / (|x| + |y|).

    Ours. IES prefers short answers, though only answers are learned; tests/benchmarks/README.md has both.
    """
    return jsd * answers / tokens


def ranked(
    efficiency: NDArray[np.float64],
    labels: NDArray[np.int64],
    ids: Sequence[str],
    rows: Iterable[int] | None = None,
) -> list[list[int]]:
    """For each cluster its rows, or those of them in `rows`, the most efficient first, ties by row id."""
    clusters: list[list[int]] = [[] for _ in range(int(labels.max()) + 1)]
    every = range(len(ids)) if rows is None else rows
    for index in sorted(every, key=lambda row: (-efficiency[row], ids[row])):
        clusters[labels[index]].append(index)
    return clusters
