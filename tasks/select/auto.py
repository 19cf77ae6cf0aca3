"""PASER for pools of any size, with rules of ours: nothing grows with the square of the rows.

Up to 4,000 rows all are compared. Above, the diffusion map is that of landmarks, a cluster's degradation is
estimated on a random sample of its rows, and its rows are chosen from a random shortlist of several times its
budget, and from the rivals of rows on it. Rows are ranked by the degradation on their answers for each token
in place of IES, questions with rival answers keep the one that the dense model likes best, the budget is
filled to within one row, and the graph re-admits the least conflicting rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.select import budget
from resprout.tasks.select.cluster import Labels, Matrix, choose_count, clustered
from resprout.tasks.select.compared import Compared
from resprout.tasks.select.concept_graph import (
    GraphOfFewConcepts,
    GraphOfManyConcepts,
    choose_consistent,
    literal_concepts,
    readmit,
    top_concepts,
)
from resprout.tasks.select.duplicates import Questions
from resprout.tasks.select.paser_size import MOST_ROWS, samples
from resprout.tasks.select.pool import Pool
from resprout.tasks.select.selection import Degradation, Selection
from resprout.tasks.select.target_mix import healed, mixed_budget, nearness

COVERAGE = 0.95
"""Of the interval of a degradation."""
NOTHING_WANTED = (
    "no cluster that is near select.capabilities.rows and that the pilot healed was hurt: all have "
    "equal shares"
)


def select(
    config: SelectConfig,
    pool: Pool,
    embeddings: Matrix,
    questions: Questions,
    compared: Compared,
    seed: int,
    progress: Progress,
    targets: Matrix | None = None,
    tried: Callable[[Sequence[int]], NDArray[np.float64]] | None = None,
) -> Selection:
    """Rows of the capabilities that pruning hurt most, most efficient first, without contradictions.

    Args:
        config: The section.
        pool: Its rows.
        embeddings: [rows, columns].
        questions: Of the rows, with those that ask nearly the same.
        compared: Divergences, as far as they are asked for.
        seed: Of samples and clusters.
        progress: Called between the steps.
        targets: Embeddings of rows like what the model is for.
        tried: Gives the divergence of rows after a short recovery.
    """
    own, rng = config.paser, np.random.default_rng(seed)
    everything, sampled = range(len(pool.rows)), samples(config, len(pool.rows))
    dropped = dict[int, str]()
    if own.max_ifd is not None:
        difficulty = compared.following_difficulty()
        for row in np.flatnonzero(difficulty > own.max_ifd).tolist():
            dropped[row] = f"its question does not help: IFD {difficulty[row]:.3f}"
        if len(dropped) == len(pool.rows):
            raise BadInput(
                f"select.paser.max_ifd {own.max_ifd:g} leaves none of {len(pool.rows)} rows; raise it, or "
                "leave it out"
            )
    unhelped = len(dropped)
    if not sampled:
        compared(everything)
        dropped |= _less_liked(pool, questions, everything, dropped, compared)
    kept = np.array([row for row in everything if row not in dropped], dtype=np.int64)
    progress(0, 2, "steps (clusters, graph)")
    count, search = own.clusters, dict[str, float]()
    if count == "auto":
        count, search = choose_count(embeddings[kept], own.clusterer, seed)
    landmarks = own.landmarks if len(kept) > MOST_ROWS else None
    labels, about = clustered(embeddings[kept], own.clusterer, min(count, len(kept)), seed, landmarks)
    labels_of = np.full(len(pool.rows), -1, dtype=np.int64)
    labels_of[kept] = labels
    members = shuffled_members(labels_of, rng)
    progress(1, 2, "steps (clusters, graph)")

    first = [rows[: own.sample_rows] if sampled else rows for rows in members]
    compared((row for rows in first for row in rows), "rows of the clusters' samples")
    sizes = [len(rows) for rows in members]
    degradation = estimated(compared.jsd, first, sizes)
    held = [int(pool.costs[rows].sum()) for rows in members]
    cds, weights = degradation.cds.tolist(), dict[str, NDArray[np.float64]]()
    if targets is not None:
        weights["nearness"] = nearness(embeddings[kept], labels, targets)
    if tried is not None:
        after = tried([row for rows in first for row in rows.tolist()])
        weights["healed"] = healed(degradation.cds, estimated(after, first, sizes).cds)
    wanted = degradation.cds * np.prod(list(weights.values()), axis=0) if weights else degradation.cds
    reserve = config.capabilities.reserve if config.capabilities is not None and weights else 0.0
    grants = mixed_budget(pool.budget, wanted.tolist(), cds, held, reserve)
    listed = set(kept.tolist())
    if sampled:
        lists = [
            shortlist(rows, pool.costs, own.shortlist * grant, own.sample_rows or 0)
            for rows, grant in zip(members, grants, strict=True)
        ]
        listed = {row for rows in lists for row in rows.tolist()}
        compared(sorted(listed), "more rows of the shortlists")
        listed.update(row for row in questions.contested(listed) if row not in dropped)
        compared(sorted(listed), "rivals of rows of the shortlists")
        dropped |= _less_liked(pool, questions, listed, dropped, compared)
        listed.difference_update(dropped)
    answers = np.zeros(len(pool.rows), dtype=np.int64)
    known = np.flatnonzero(~np.isnan(compared.jsd)).tolist()
    answers[known] = [len(pool.encoded[row].response_ids) for row in known]
    efficiency = budget.answer_efficiency(compared.jsd, answers, pool.tokens)
    listed_rows = sorted(listed)
    clusters = budget.ranked(efficiency, labels_of, pool.ids, listed_rows)
    concepts, graph = _concepts(own.graph, pool, listed_rows)
    order = budget.worst_first(degradation.cds)
    outcome = choose_consistent(graph, clusters, grants, pool.costs, concepts, order)
    readmit(outcome, graph, clusters, grants, pool.costs, concepts, order, pool.budget)
    progress(2, 2, "steps (clusters, graph)")
    path = {
        "mode": own.mode,
        "embedder": own.embedder,
        "clusterer": own.clusterer,
        "clusters": len(clusters),
        "clusters_by": _reason(own.clusters, search),
        "cluster_search": search,
        **about,
        "efficiency": "divergence over the answer for each token of the row",
        "graph": own.graph,
        "budget": "filled",
        "divergence": _compared_in_words(own.sample_rows, own.shortlist) if sampled else "every row",
    }
    return Selection(
        labels=labels_of,
        dropped=dropped,
        jsd=compared.jsd,
        efficiency=efficiency,
        concepts=concepts,
        degradation=degradation,
        held=held,
        grants=grants,
        outcome=outcome,
        path=path,
        weights=weights,
        metrics={
            "rival_rows": len(dropped) - unhelped,
            "open_rows": questions.open_rows,
            "unhelped_rows": unhelped,
        },
        warnings=[NOTHING_WANTED] if degradation.cds.any() and not wanted.any() else [],
    )


def _less_liked(
    pool: Pool, questions: Questions, rows: Collection[int], dropped: Collection[int], compared: Compared
) -> dict[int, str]:
    """Those of compared rows, but for the dropped, that lose to a rival among them, with the reason."""
    contested = (row for row in questions.contested(rows) if row in rows and row not in dropped)
    return {
        row: f"the question of {pool.ids[other]}, whose answer the dense model likes better"
        for row, other in questions.settled(compared.dense_nll, contested).items()
    }


def shuffled_members(labels: Labels, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """For each cluster its rows in a random order, of which any first part is a random sample."""
    return [rng.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]


def estimated(
    jsd: NDArray[np.float64], sample: Sequence[NDArray[np.int64]], rows: Sequence[int]
) -> Degradation:
    """CDS of each cluster by a random sample of its `rows`, with Student's interval of a finite population.

    The standard error of the mean of m of n rows is s / sqrt(m) * sqrt(1 - m / n) (Cochran, Sampling
    Techniques, 2.6): none where all were compared, without end where one was.
    """
    from scipy.special import stdtrit

    cds, reach = list[float](), list[float]()
    for drawn, held in zip(sample, rows, strict=True):
        values, count = jsd[drawn], len(drawn)
        cds.append(float(values.mean()))
        if count == held:
            reach.append(0.0)
        elif count < 2:
            reach.append(math.inf)
        else:
            error = float(values.std(ddof=1)) / math.sqrt(count) * math.sqrt(1 - count / held)
            reach.append(float(stdtrit(count - 1, (1 + COVERAGE) / 2)) * error)
    return Degradation(
        np.array(cds), np.array(reach), np.array([len(one) for one in sample]), np.array(list(rows))
    )


def shortlist(
    rows: NDArray[np.int64], costs: NDArray[np.int64], wanted: float, fewest: int
) -> NDArray[np.int64]:
    """The first of the rows that together cost at least `wanted`, and at least `fewest` of them."""
    enough = int(np.searchsorted(np.cumsum(costs[rows]), wanted)) + 1
    return rows[: max(enough, fewest)]


def _concepts(
    graph: str, pool: Pool, rows: Sequence[int]
) -> tuple[Mapping[int, Sequence[str]], GraphOfFewConcepts | GraphOfManyConcepts]:
    """Concepts of these rows, and a graph without any."""

    def texts() -> Iterator[Mapping[str, Any]]:
        return (pool.rows[row] for row in rows)

    if graph == "literal":
        return dict(zip(rows, literal_concepts(texts()), strict=True)), GraphOfManyConcepts()
    return dict(zip(rows, top_concepts(texts), strict=True)), GraphOfFewConcepts()


def _reason(asked: int | str, search: Mapping[str, float]) -> str:
    """Why so many clusters."""
    if asked != "auto":
        return "paser.clusters"
    return "elbow, eigengap and stability" if search else "the number of rows, too few for a search"


def _compared_in_words(sample: int | None, times: float) -> str:
    return f"{sample} rows of each cluster, then a random shortlist of {times:g} times its budget"
