"""PASER as published, on pools of up to 4,000 rows: every row compared, every rule taken at its word.

`paper` is the paper's equations (He et al., arXiv 2502.12594), `released` what a reading of its code found
where the code differs. The release does not run as it is, so `released` cannot be checked against a run of
it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resprout.configs.schema import PaserConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.select import budget
from resprout.tasks.select.cluster import (
    DiffusionMap,
    Factors,
    Labels,
    Matrix,
    numbered_by_size,
    similarity,
    width,
)
from resprout.tasks.select.concept_graph import GraphOfManyConcepts, choose_consistent, literal_concepts
from resprout.tasks.select.pool import Pool
from resprout.tasks.select.selection import Degradation, Selection

BOTH = (
    "clusters: the number that paser.clusters gives; the paper minimises the error of the NMF, which falls "
    "with every further cluster",
    "embedding: of the instruction alone; a sentence encoder reads its first 256 tokens",
    "kernel: all pairs, a row's distance to itself among them",
    "diffusion map: as many of the smallest eigenvalues as clusters, 0 among them; unit eigenvectors",
    "lengths: tokens after the template and the cut at select.max_len_tokens",
    "divergence: of distributions at paser.temperature, 1 where it is left out",
    "budget: rounded down, and no more than a cluster holds; what is left is not handed out",
    "concepts: phrases of instruction, input and answer by RAKE, with scikit-learn's English stop words",
    "equal scores: the row of the lower id first",
)
PAPER = (
    *BOTH,
    "divergence: a mean over the tokens of the response",
    "factorisation: from NNDSVDa, by coordinate descent",
    "order of clusters: the most degraded first",
    "a row that contradicts an accepted one is passed over",
)
RELEASED = (
    *BOTH,
    "not checked against a run of the release, which does not run as it is",
    "divergence: a sum over the tokens of the prompt, its template and input among them",
    "factorisation: from a random start, by coordinate descent",
    "order of clusters: that of the factors",
    "a row that does not fit ends its cluster",
)
"""How each gap is filled that the text leaves open."""


def select(
    config: PaserConfig,
    pool: Pool,
    embeddings: Matrix,
    jsd: NDArray[np.float64],
    seed: int,
    progress: Progress,
) -> Selection:
    """Rows by the paper's rules, or by those of its code.

    Args:
        config: `mode` is `paper` or `released`, `clusters` a number.
        pool: Its costs are 1: the budget counts rows.
        embeddings: [rows, columns].
        jsd: Divergence of each row: over its response, or with `released` over its prompt.
        seed: Of the random start of the factorisation.
        progress: Called between the steps.
    """
    released = config.mode == "released"
    count = min(int(config.clusters), len(pool.rows))
    progress(0, 2, "steps (clusters, graph)")
    sigma = width(embeddings, seed)
    found = DiffusionMap.of(embeddings, count, sigma)
    factors = Factors.of(similarity(found.vectors), count, seed, "random" if released else "nndsvda")
    labels = in_own_order(factors.labels) if released else numbered_by_size(factors.labels)
    progress(1, 2, "steps (clusters, graph)")
    cds = budget.capability_degradation(jsd, labels)
    efficiency = budget.instruction_efficiency(jsd, pool.tokens)
    clusters = budget.ranked(efficiency, labels, pool.ids)
    held = [int(pool.costs[rows].sum()) for rows in clusters]
    grants = budget.floor_budget(pool.budget, cds.tolist(), held)
    concepts = literal_concepts(pool.rows)
    order = list(range(len(clusters))) if released else budget.worst_first(cds)
    outcome = choose_consistent(
        GraphOfManyConcepts(), clusters, grants, pool.costs, concepts, order, ends=released
    )
    progress(2, 2, "steps (clusters, graph)")
    rows = np.bincount(labels)
    path = {
        "mode": config.mode,
        "embedder": config.embedder,
        "clusterer": "diffusion_nmf",
        "clusters": len(clusters),
        "clusters_by": "paser.clusters",
        "sigma": sigma,
        "nmf_error": factors.error,
        "efficiency": "IES",
        "graph": "literal",
        "budget": "floored",
        "divergence": "every row",
        "decided": list(RELEASED if released else PAPER),
    }
    return Selection(
        labels=labels,
        dropped={},
        jsd=jsd,
        efficiency=efficiency,
        concepts=dict(enumerate(concepts)),
        degradation=Degradation(cds, np.zeros(len(rows)), rows, rows),
        held=held,
        grants=grants,
        outcome=outcome,
        path=path,
        warnings=_warnings(config),
    )


def in_own_order(labels: Labels) -> Labels:
    """Labels 0, 1, ... without gaps, in the order of the numbers that they were."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _warnings(config: PaserConfig) -> Sequence[str]:
    if config.embedder == "minilm":
        return ()
    return (f"paser.mode is {config.mode} with embedder {config.embedder}; the paper's is minilm",)
