"""Rows to capabilities: semantic-structural clustering (PASER, section 3.1) and k-means, its ablation.

The diffusion map and its factors are those of all rows, or of landmarks by which all others are placed
(Nystrom): time and memory then grow with the rows, not with their square.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.floating]
Labels: TypeAlias = NDArray[np.int64]

EQUAL = 1e-6
"""Rows of unit length that are equal have computed distances up to about 1e-8."""
LEAST_EIGENVALUE = 1e-6
"""Of the kernel's transition matrix; by smaller ones a row cannot be placed."""
TINY = np.finfo(np.float64).tiny
BLOCK = 4096
"""Rows that are placed at a time."""
SIGMA_ROWS = 4000
"""Rows at most, of whose distances the kernel's width is the median."""
FITTED_ROWS = 20_000
"""Rows at most that k-means is fitted on."""


def distances(embeddings: Matrix, others: Matrix | None = None) -> Matrix:
    """Euclidean distances of all rows from all others, or from each other: zeros on the diagonal then."""
    own = others is None
    others = embeddings if others is None else others
    squared = (embeddings**2).sum(1)[:, None] + (others**2).sum(1)[None, :] - 2.0 * embeddings @ others.T
    if own:
        np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)


def width(embeddings: Matrix, seed: int) -> float:
    """Sigma of the kernel: the median distance of two rows, of a sample of 4,000 where there are more.

    Where most rows are equal, it is the median distance of those that differ, ours.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:SIGMA_ROWS])
    far = distances(embeddings[rows])
    pairs = far[np.triu_indices(len(far), 1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    # Of equal rows it would be rounding noise, which makes noise of the kernel.
    if median > EQUAL:
        return median
    differing = pairs[pairs > EQUAL]
    return float(np.median(differing)) if len(differing) else 1.0


@dataclass(frozen=True)
class DiffusionMap:
    """The slowest modes of a random walk between rows.

    `rows` [rows, columns] are the embeddings that it is of; `sigma` the kernel's width; `values` [K] the
    eigenvalues of L = I - D^-1 A, ascending; `vectors` [rows, K] its unit eigenvectors.
    """

    rows: Matrix
    sigma: float
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]

    @classmethod
    def of(cls, embeddings: Matrix, count: int, sigma: float) -> DiffusionMap:
        """The `count` smallest of L, with A = exp(-d^2 / 2 sigma^2) and D = diag(row sums).

        L is not symmetric; its eigenvectors are D^-1/2 v with v those of the symmetric I - D^-1/2 A D^-1/2,
        of the same eigenvalues.
        """
        from scipy.linalg import eigh

        size = len(embeddings)
        near = _kernel(embeddings.astype(np.float64), None, sigma)
        root = 1.0 / np.sqrt(near.sum(1))
        walk = root[:, None] * near * root[None, :]
        values, vectors = eigh(walk, subset_by_index=[size - count, size - 1])
        # Below it is rounding noise: of equal rows all modes but the first.
        vectors = (root[:, None] * vectors)[:, ::-1] * (values[::-1] > LEAST_EIGENVALUE)
        return cls(
            embeddings, sigma, 1.0 - values[::-1], vectors / np.maximum(np.linalg.norm(vectors, axis=0), TINY)
        )

    def placed(self, embeddings: Matrix) -> Matrix:
        """Where other rows lie on the map: [rows, K].

        phi_k(x) = sum_j p(x, j) phi_k(j) / lambda_k, with p the walk's step from x to the rows of the map and
        lambda_k = 1 - `values`[k] (Nystrom). Of the map's own rows it is `vectors`.
        """
        steps = _kernel(embeddings, self.rows, self.sigma)
        steps /= np.maximum(steps.sum(1, keepdims=True), np.finfo(steps.dtype).tiny)
        strength = 1.0 - self.values
        scale = np.where(strength > LEAST_EIGENVALUE, 1.0 / np.maximum(strength, LEAST_EIGENVALUE), 0.0)
        return steps @ (self.vectors * scale).astype(steps.dtype)


def _kernel(embeddings: Matrix, others: Matrix | None, sigma: float) -> Matrix:
    near = distances(embeddings, others)
    near **= 2
    near /= -2.0 * sigma**2
    return np.exp(near, out=near)


def similarity(vectors: Matrix, others: Matrix | None = None) -> Matrix:
    """S = |Phi Phi^T| of the diffusion map Phi [rows, K]: [rows, others], non-negative."""
    return np.abs(vectors @ (vectors if others is None else others).T)


@dataclass(frozen=True)
class Factors:
    """S ~ W H with W, H >= 0: `weights` W [rows, clusters], `parts` H [clusters, columns] and the `error`
    ||S - W H|| / ||S||.
    """

    weights: Matrix
    parts: Matrix
    error: float

    @classmethod
    def of(cls, matrix: Matrix, clusters: int, seed: int, init: str = "nndsvda") -> Factors:
        """By coordinate descent (scikit-learn)."""
        from sklearn.decomposition import NMF

        model = NMF(clusters, init=init, random_state=seed, max_iter=400, tol=1e-3)
        weights = model.fit_transform(matrix)
        error = float(model.reconstruction_err_) / float(np.linalg.norm(matrix))
        return cls(weights, model.components_, error)

    @property
    def labels(self) -> Labels:
        """argmax_k W_ik."""
        return self.weights.argmax(1).astype(np.int64)

    def labels_of(self, matrix: Matrix) -> Labels:
        """Of other rows of S [rows, columns]: argmax_k of the w >= 0 that minimises ||s - w H||."""
        from scipy.optimize import nnls

        basis, triangle = np.linalg.qr(self.parts.T.astype(np.float64))
        within = matrix.astype(np.float64) @ basis
        return np.array([nnls(triangle, row)[0].argmax() for row in within], dtype=np.int64)


def diffusion_nmf(
    embeddings: Matrix, clusters: int, seed: int, landmarks: int | None = None, init: str = "nndsvda"
) -> tuple[Labels, dict[str, float]]:
    """Labels by NMF of the diffusion map's similarities, and the map's sigma and landmarks.

    Dense, of order rows^2 in memory, without `landmarks`; else that many rows are drawn, and the others are
    placed by them block by block.
    """
    sigma = width(embeddings, seed)
    if landmarks is None or landmarks >= len(embeddings):
        found = DiffusionMap.of(embeddings, clusters, sigma)
        factors = Factors.of(similarity(found.vectors), clusters, seed, init)
        return numbered_by_size(factors.labels), {"sigma": sigma, "nmf_error": factors.error}
    drawn = landmark_rows(len(embeddings), landmarks, seed)
    found = DiffusionMap.of(embeddings[drawn], clusters, sigma)
    factors = Factors.of(similarity(found.vectors), clusters, seed, init)
    vectors = found.vectors.astype(embeddings.dtype)
    labels = [factors.labels_of(similarity(found.placed(block), vectors)) for block in _blocks(embeddings)]
    about = {"sigma": sigma, "nmf_error": factors.error, "landmarks": landmarks}
    return numbered_by_size(np.concatenate(labels)), about


def landmark_rows(rows: int, landmarks: int, seed: int) -> NDArray[np.int64]:
    """The rows that stand for all, drawn at random, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:landmarks])


def _blocks(embeddings: Matrix) -> Iterator[Matrix]:
    return (embeddings[start : start + BLOCK] for start in range(0, len(embeddings), BLOCK))


def kmeans(embeddings: Matrix, clusters: int, seed: int, starts: int = 10) -> tuple[Labels, float]:
    """Labels of k-means on the embeddings, and its inertia as a share of the total variance.

    Fitted on 20,000 rows where there are more.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = landmark_rows(len(embeddings), FITTED_ROWS, seed)
    sample = embeddings[rows]
    with threadpool_limits(1, user_api="openmp"):  # sums in the order of threads would differ in the last bit
        model = KMeans(clusters, n_init=starts, random_state=seed).fit(sample)
        labels = model.labels_ if len(sample) == len(embeddings) else model.predict(embeddings)
    spread = float(((sample - sample.mean(0)) ** 2).sum())
    return labels.astype(np.int64), float(model.inertia_) / spread if spread else 0.0


def clustered(
    embeddings: Matrix, clusterer: str, clusters: int, seed: int, landmarks: int | None = None
) -> tuple[Labels, dict[str, float]]:
    """Labels by the clusterer of this name, the largest cluster first, and what it found on the way."""
    if clusterer == "kmeans":
        labels, inertia = kmeans(embeddings, clusters, seed)
        return numbered_by_size(labels), {"inertia": inertia}
    return diffusion_nmf(embeddings, clusters, seed, landmarks)


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

    sample = embeddings[landmark_rows(len(embeddings), SAMPLE_ROWS, seed)]
    counts = [count for count in COUNTS if count <= len(sample) // 4]
    if len(counts) < 2:
        return min(COUNTS[0], max(2, len(sample) // 4)), {}
    most = counts[-1]
    found = DiffusionMap.of(sample, most + 1, width(sample, seed))
    if clusterer == "kmeans":
        errors = [kmeans(sample, count, seed, starts=1)[1] for count in counts]
    else:
        whole = similarity(found.vectors[:, :most])
        errors = [Factors.of(whole, count, seed).error for count in counts]
    gaps = [found.values[count] - found.values[count - 1] for count in counts]
    gap = counts[int(np.argmax(gaps))]
    proposals = sorted({elbow(counts, errors), gap})
    stability = dict[int, float]()
    for count in proposals:
        if clusterer == "kmeans":
            labels = [kmeans(sample, count, seed + shift, starts=1)[0] for shift in range(SEEDS)]
        else:
            near = similarity(found.vectors[:, :count])
            labels = [Factors.of(near, count, seed + shift, init="random").labels for shift in range(SEEDS)]
        stability[count] = float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]))
    best = max(proposals, key=lambda count: (stability[count], -count))
    figures = {f"stability_at_{count}": round(value, 4) for count, value in stability.items()}
    return best, {"elbow": elbow(counts, errors), "eigengap": gap, **figures}


def elbow(counts: list[int], errors: list[float]) -> int:
    """The count whose error is deepest below the straight line from the first to the last."""
    line = np.interp(counts, [counts[0], counts[-1]], [errors[0], errors[-1]])
    return counts[int(np.argmax(line - np.array(errors)))]
