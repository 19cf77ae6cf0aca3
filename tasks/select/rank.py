"""The order of rows inside a cluster (PASER, section 3.2, instruction efficiency)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def instruction_efficiency(jsd: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """IES = jsd / log((|x| + |y|)^2), lengths in tokens: degradation healed for the computation it costs."""
    return jsd / np.log(tokens.astype(np.float64) ** 2)


def ranked(ies: NDArray[np.float64], labels: NDArray[np.int64], ids: Sequence[str]) -> list[list[int]]:
    """For each cluster its rows, highest IES first, ties by row id."""
    clusters: list[list[int]] = [[] for _ in range(int(labels.max()) + 1)]
    for index in sorted(range(len(ids)), key=lambda row: (-ies[row], ids[row])):
        clusters[labels[index]].append(index)
    return clusters
