"""PASER: post-training data selection for pruned models (He et al., arXiv 2502.12594, ICLR 2026).

Lifecycle: divergence of the pruned from the dense model on each row; embeddings; clusters (section 3.1);
budget by capability degradation and order by efficiency (3.2); consistency graph (3.3).

`mode: faithful` is the paper and its code: dense kernel, NMF, divergence of every row, all RAKE phrases
(whatever `graph` says), floored budget. `mode: auto` adds rules of ours: near-duplicates go, the budget is
filled to within one row, and the graph takes three phrases a row and re-admits the least conflicting rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import PaserConfig, SelectConfig
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.models.load import load_pair
from resprout.tasks.select import budget, duplicates, embed
from resprout.tasks.select.budget import instruction_efficiency, ranked
from resprout.tasks.select.cluster import CLUSTERERS, Matrix, choose_count
from resprout.tasks.select.concept_graph import (
    Outcome,
    choose_consistent,
    literal_concepts,
    readmit,
    top_concepts,
)
from resprout.tasks.select.divergence import FILE, RowDivergences, measure, read_rows
from resprout.tasks.select.paser_size import check_size
from resprout.tasks.select.pool import Choice, Pool


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows of the capabilities that pruning hurt most, most efficient first, without contradictions.

    Raises:
        BadInput: more than 4,000 rows, or fewer rows than clusters need.
    """
    config = job.config.paser
    check_size(job.config, len(pool.rows))
    shards = [folder / FILE for folder in shards_in(inputs)]
    divergence = read_rows(shards, len(pool.rows)) if shards else measure_rows(job, inputs, pool, progress)
    instructions = [str(row["instruction"]) for row in pool.rows]
    embeddings = _embed(job, inputs, instructions, divergence, progress)
    dropped = _duplicates(config, pool, instructions, embeddings, divergence) if config.mode == "auto" else {}
    kept = np.array([row for row in range(len(pool.rows)) if row not in dropped])
    progress(0, 2, "clusters, then graph")
    labels, search = _cluster(config, embeddings[kept], job.seed)
    progress(1, 2, "clusters, then graph")
    ies = instruction_efficiency(divergence.jsd[kept], pool.tokens[kept])
    ids = [str(pool.rows[row]["id"]) for row in kept]
    clusters = ranked(ies, labels, ids)
    cds = budget.capability_degradation(divergence.jsd[kept], labels)
    tokens = pool.tokens[kept]
    held = [int(tokens[rows].sum()) for rows in clusters]
    literal = config.mode == "faithful" or config.graph == "literal"
    kept_rows = [pool.rows[row] for row in kept]
    found = literal_concepts(kept_rows) if literal else top_concepts(kept_rows)
    divide = budget.floor_budget if config.mode == "faithful" else budget.full_budget
    grants = divide(pool.budget, cds.tolist(), held)
    # The most degraded cluster is served first, so that its concepts are the ones others must agree with.
    order = sorted(range(len(clusters)), key=lambda k: (-cds[k], k))
    outcome, graph = choose_consistent(clusters, grants, tokens, found, order)
    if config.mode == "auto":
        readmit(outcome, graph, clusters, grants, tokens, found, order, pool.budget)
    progress(2, 2, "clusters, then graph")

    facts = _facts(pool, dropped, divergence)
    for place, row in enumerate(kept):
        facts[row] |= {
            "cluster": int(labels[place]),
            "ies": float(ies[place]),
            "concepts": found[place],
            "reason": outcome.reasons.get(place) or outcome.refusals[place],
        }
    accepted = [int(kept[place]) for place in outcome.reasons]
    path = {
        "mode": config.mode,
        "embedder": config.embedder,
        "clusterer": config.clusterer,
        "graph": "literal" if literal else "top3",
        "budget": "floored" if config.mode == "faithful" else "filled",
        "divergence": "every row",
        "cluster_search": search,
    }
    summaries = _clusters(clusters, cds, held, grants, outcome)
    rejected = sum(outcome.rejected) / max(1, sum(outcome.considered))
    metrics = {
        "clusters": len(clusters),
        "pool_jsd_nats": float(divergence.jsd.mean()),
        "selected_jsd_nats": float(divergence.jsd[accepted].mean()) if accepted else 0.0,
        "graph_reject_rate": rejected,
        "duplicate_rows": len(dropped),
    }
    return Choice(
        accepted,
        facts,
        sum(grants),
        {"path": path, "clusters": summaries},
        metrics,
        _warnings(config, cds, outcome),
    )


def measure_rows(
    job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress
) -> RowDivergences:
    """Divergences of the rows of the job's share; loads both models."""
    config = job.config.paser
    dense, pruned = load_pair(job, inputs["dense"], inputs["pruned"])
    want_states = config.embedder == "hidden"
    return measure(pruned, dense, pool.encoded, config.temperature, progress, want_states, job.share)


def _embed(
    job: Job[SelectConfig],
    inputs: Mapping[str, Path],
    instructions: Sequence[str],
    divergence: RowDivergences,
    progress: Progress,
) -> Matrix:
    config = job.config.paser
    if config.embedder == "tfidf":
        return embed.tfidf(instructions, job.seed)
    if config.embedder == "hidden" and divergence.prompt_states is not None:
        return embed.hidden(divergence.prompt_states)
    if "embedder" not in inputs:
        raise BadInput(
            "paser.embedder is minilm but the stage has no input `embedder`; give the encoder's folder"
        )
    return embed.minilm(inputs["embedder"], instructions, job.device, progress)


def _duplicates(
    config: PaserConfig,
    pool: Pool,
    instructions: Sequence[str],
    embeddings: Matrix,
    divergence: RowDivergences,
) -> dict[int, str]:
    """Rows that go, each with the reason."""
    ids = [str(row["id"]) for row in pool.rows]
    dropped = {
        row: f"nearly the same as {ids[other]}" for row, other in duplicates.near_equal(pool.rows).items()
    }
    # Only a sentence encoder is fine enough to tell a paraphrase from a question of the same form.
    vectors = embeddings if config.embedder == "minilm" else duplicates.lexical_vectors(instructions)
    answers = duplicates.conflicting(pool.rows, vectors, config.duplicate_cosine, divergence.dense_nll)
    for row, other in answers.items():
        dropped.setdefault(row, f"the question of {ids[other]}, whose answer the dense model likes better")
    return dropped


def _cluster(
    config: PaserConfig, embeddings: Matrix, seed: int
) -> tuple[NDArray[np.int64], dict[str, float]]:
    count, search = config.clusters, dict[str, float]()
    if count == "auto":
        count, search = choose_count(embeddings, config.clusterer, seed)
    return CLUSTERERS[config.clusterer](embeddings, min(count, len(embeddings)), seed), search


def _facts(pool: Pool, dropped: Mapping[int, str], divergence: RowDivergences) -> list[dict[str, Any]]:
    return [
        {"jsd": float(divergence.jsd[row]), "reason": dropped.get(row, "")} for row in range(len(pool.rows))
    ]


def _clusters(
    clusters: Sequence[Sequence[int]],
    cds: NDArray[np.float64],
    held: Sequence[int],
    grants: Sequence[int],
    outcome: Outcome,
) -> list[dict[str, Any]]:
    return [
        {
            "cluster": k,
            "rows": len(rows),
            "tokens": held[k],
            "cds": float(cds[k]),
            "granted_tokens": grants[k],
            "filled_tokens": outcome.filled[k],
            "selected_rows": sum(row in outcome.reasons for row in rows),
            "considered_rows": outcome.considered[k],
            "reject_rate": outcome.rejected[k] / max(1, outcome.considered[k]),
            "readmitted_rows": outcome.readmitted[k],
        }
        for k, rows in enumerate(clusters)
    ]


def _warnings(config: PaserConfig, cds: NDArray[np.float64], outcome: Outcome) -> list[str]:
    warnings = list[str]()
    if not cds.any():
        warnings.append("the pruned model equals the dense one on every row: all clusters have equal shares")
    if config.mode == "faithful" and config.embedder != "minilm":
        warnings.append(f"mode is faithful with embedder {config.embedder}; the paper's is minilm")
    if config.mode == "faithful" and config.graph != "literal":
        warnings.append("mode is faithful, so the graph is literal whatever `graph` says")
    return warnings
