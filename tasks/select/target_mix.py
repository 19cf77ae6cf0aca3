"""Which clusters get the budget: those near what the model is for, and those that recovery heals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resprout.tasks.select.budget import full_budget
from resprout.tasks.select.cluster import Labels, Matrix
from resprout.tasks.select.embed import most_alike

NEIGHBOURS = 5
"""Rows of the pool by whose clusters a target row is placed."""


def nearness(embeddings: Matrix, labels: Labels, targets: Matrix) -> NDArray[np.float64]:
    """Share of the target rows in each cluster, by the clusters of the five rows most like each: [clusters].

    Args:
        embeddings: Of the pool's rows, of length 1 (or 0).
        labels: Their clusters.
        targets: Embeddings of the target rows, in the same space.
    """
    nearest = most_alike(targets, embeddings, min(NEIGHBOURS, len(embeddings)))
    votes = np.bincount(labels[nearest].ravel(), minlength=int(labels.max()) + 1)
    return votes / votes.sum()


def healed(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each cluster's degradation that a short recovery took away, 0 where none: [clusters]."""
    lost = np.where(before > 0, before, 1.0)
    return np.where(before > 0, np.clip((before - after) / lost, 0.0, 1.0), 0.0)


def mixed_budget(
    budget: int, wanted: Sequence[float], cds: Sequence[float], capacities: Sequence[int], reserve: float
) -> list[int]:
    """`full_budget` by what is `wanted` of each cluster, less a `reserve` that goes by degradation alone."""
    kept = int(budget * reserve)
    first = full_budget(budget - kept, wanted, capacities)
    left = [held - got for held, got in zip(capacities, first, strict=True)]
    second = full_budget(budget - sum(first), cds, left)
    return [one + more for one, more in zip(first, second, strict=True)]
