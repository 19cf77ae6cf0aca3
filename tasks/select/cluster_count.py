"""How many clusters: two proposals, and the one that other starts confirm. Ours, not the paper's.

The NMF error that the paper minimises falls with every further cluster. So its elbow is one proposal, the
largest gap of the kernel's eigenvalues the other, and the one whose labels agree better over seeds is
taken.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from resprout.tasks.select.cluster import Matrix, kmeans, nmf, similarity, spectrum

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
    told = {f"stability_at_{count}": round(value, 4) for count, value in stability.items()}
    return best, {"elbow": elbow(counts, errors), "eigengap": gap, **told}


def elbow(counts: list[int], errors: list[float]) -> int:
    """The count whose error lies deepest below the straight line from the first to the last."""
    line = np.interp(counts, [counts[0], counts[-1]], [errors[0], errors[-1]])
    return counts[int(np.argmax(line - np.array(errors)))]
