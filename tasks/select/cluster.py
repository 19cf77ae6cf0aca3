"""Rows to capabilities: semantic-structural clustering (PASER, section 3.1) and k-means, its ablation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int64]

EQUAL = 1e-6
"""Rows of unit length that are equal have computed distances up to about 1e-8."""


def distances(embeddings: Matrix) -> Matrix:
    """Euclidean distances of all pairs of rows: [rows, rows], zeros on the diagonal."""
    squares = (embeddings**2).sum(1)
    squared = squares[:, None] + squares[None, :] - 2.0 * embeddings @ embeddings.T
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0))


def spectrum(embeddings: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """Eigenvalues, ascending, and unit eigenvectors [rows, count] of L = I - D^-1 A, the `count` smallest.

    A = exp(-d^2 / 2 sigma^2) with sigma the median distance, D = diag(row sums). L is not symmetric; its
    eigenvectors are D^-1/2 v with v those of the symmetric I - D^-1/2 A D^-1/2, of the same eigenvalues.
    Where most rows are equal, sigma is the median distance of those that differ, ours.
    """
    from scipy.linalg import eigh

    far = distances(embeddings)
    size = len(far)
    kernel = np.exp(-(far**2) / (2.0 * _sigma(far[np.triu_indices(size, 1)]) ** 2))
    root = 1.0 / np.sqrt(kernel.sum(1))
    values, vectors = eigh(root[:, None] * kernel * root[None, :], subset_by_index=[size - count, size - 1])
    vectors = (root[:, None] * vectors)[:, ::-1]
    return 1.0 - values[::-1], vectors / np.linalg.norm(vectors, axis=0)


def _sigma(pairs: Matrix) -> float:
    """The median of distances; of equal rows it would be rounding noise, which makes noise of the kernel."""
    median = float(np.median(pairs))
    if median > EQUAL:
        return median
    differing = pairs[pairs > EQUAL]
    return float(np.median(differing)) if len(differing) else 1.0


def similarity(vectors: Matrix) -> Matrix:
    """S = |Phi Phi^T| of the diffusion map Phi [rows, K]: [rows, rows], non-negative."""
    return np.abs(vectors @ vectors.T)


def nmf(matrix: Matrix, clusters: int, seed: int, init: str = "nndsvda") -> tuple[Labels, float]:
    """Labels argmax_k W_ik of S ~ W H with W, H >= 0, and the error ||S - W H|| / ||S||."""
    from sklearn.decomposition import NMF

    model = NMF(clusters, init=init, random_state=seed, max_iter=400, tol=1e-3)
    weights = model.fit_transform(matrix)
    error = float(model.reconstruction_err_) / float(np.linalg.norm(matrix))
    return weights.argmax(1).astype(np.int64), error


def kmeans(embeddings: Matrix, clusters: int, seed: int, starts: int = 10) -> tuple[Labels, float]:
    """Labels of k-means on the embeddings, and its inertia as a share of the total variance."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):  # sums in the order of threads would differ in the last bit
        model = KMeans(clusters, n_init=starts, random_state=seed).fit(embeddings)
    spread = float(((embeddings - embeddings.mean(0)) ** 2).sum())
    return model.labels_.astype(np.int64), float(model.inertia_) / spread if spread else 0.0


def diffusion_nmf(embeddings: Matrix, clusters: int, seed: int) -> Labels:
    """Labels by NMF of the diffusion map's similarities; dense, of order rows^2 in memory."""
    _, vectors = spectrum(embeddings, clusters)
    return numbered_by_size(nmf(similarity(vectors), clusters, seed)[0])


def kmeans_labels(embeddings: Matrix, clusters: int, seed: int) -> Labels:
    """Labels by k-means on the embeddings."""
    return numbered_by_size(kmeans(embeddings, clusters, seed)[0])


CLUSTERERS: dict[str, Callable[[Matrix, int, int], Labels]] = {
    "diffusion_nmf": diffusion_nmf,
    "kmeans": kmeans_labels,
}


def numbered_by_size(labels: Labels) -> Labels:
    """Labels 0, 1, ... without gaps, the largest cluster first, ties by first row."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    new = np.empty(int(found.max()) + 1, dtype=np.int64)
    new[found[order]] = np.arange(len(found))
    return new[labels]


COUNTS = (*range(4, 13), 14, 16, 20, 24, 28, 32)
SAMPLE_ROWS = 600
"""The search runs on a seeded sample of at most this many rows."""
SEEDS = 3


def choose_count(embeddings: Matrix, clusterer: str, seed: int) -> tuple[int, dict[str, float]]:
    """Number of clusters in 4..32, and what the search found (elbow, eigengap, stability of each)."""
    from sklearn.metrics import adjusted_rand_score

    rows = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:SAMPLE_ROWS])
    sample = embeddings[rows]
    counts = [count for count in COUNTS if count <= len(sample) // 4]
    if len(counts) < 2:
        return min(COUNTS[0], max(2, len(sample) // 4)), {}
    most = counts[-1]
    values, vectors = spectrum(sample, most + 1)
    if clusterer == "kmeans":
        errors = [kmeans(sample, count, seed, starts=1)[1] for count in counts]
    else:
        whole = similarity(vectors[:, :most])
        errors = [nmf(whole, count, seed)[1] for count in counts]
    gap = counts[int(np.argmax([values[count] - values[count - 1] for count in counts]))]
    proposals = sorted({elbow(counts, errors), gap})
    stability = dict[int, float]()
    for count in proposals:
        if clusterer == "kmeans":
            found = [kmeans(sample, count, seed + shift, starts=1)[0] for shift in range(SEEDS)]
        else:
            near = similarity(vectors[:, :count])
            found = [nmf(near, count, seed + shift, init="random")[0] for shift in range(SEEDS)]
        stability[count] = float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(found, 2)]))
    best = max(proposals, key=lambda count: (stability[count], -count))
    figures = {f"stability_at_{count}": round(value, 4) for count, value in stability.items()}
    return best, {"elbow": elbow(counts, errors), "eigengap": gap, **figures}


def elbow(counts: list[int], errors: list[float]) -> int:
    """The count whose error is deepest below the straight line from the first to the last."""
    line = np.interp(counts, [counts[0], counts[-1]], [errors[0], errors[-1]])
    return counts[int(np.argmax(line - np.array(errors)))]
