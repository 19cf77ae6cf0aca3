"""PASER: post-training data selection for pruned models (He et al., arXiv 2502.12594, ICLR 2026).

Divergence of the pruned from the dense model on rows; embeddings; clusters (section 3.1); budget by
capability degradation and order by efficiency (3.2); consistency graph (3.3).

`mode: paper` and `released` are what others described (`published.py`); `mode: auto` scales and adds rules of
ours (`auto.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.data.template import Encoded
from resprout.tasks.select import auto, embed, published
from resprout.tasks.select.cluster import Matrix
from resprout.tasks.select.compared import Compared
from resprout.tasks.select.divergence import on_prompts
from resprout.tasks.select.duplicates import Questions, lexical_vectors
from resprout.tasks.select.paser_size import check_size, samples
from resprout.tasks.select.pool import Choice, Pool
from resprout.tasks.select.target_rows import Targets, read_targets

DECLARED = {"reads": ["dense", "pruned", "targets"]}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows of the capabilities that pruning hurt most, most efficient first, without contradictions.

    Raises:
        BadInput: fewer rows than clusters need, or more than a published mode takes.
    """
    config = job.config.paser
    check_size(job.config, len(pool.rows))
    states = config.embedder == "hidden" and config.mode != "released"
    states = states and not samples(job.config, len(pool.rows))
    encoded = on_prompts(pool.encoded) if config.mode == "released" else pool.encoded
    compared = Compared(job, inputs, pool.ids, encoded, progress, states)
    if states:
        compared(range(len(pool.rows)))
    targets = read_targets(job, inputs) if "targets" in inputs else Targets([], [])
    whole, cut = _embed(job, inputs, pool, targets, compared, progress)
    embeddings, wanted, cut = whole[: len(pool.rows)], whole[len(pool.rows) :], cut[: len(pool.rows)]
    warnings = [_cut_in_words(int(cut.sum()))] if cut.any() else []
    if config.published:
        compared(range(len(pool.rows)))
        released = config.mode == "released"
        jsd = summed_over_prompts(compared.jsd, pool.encoded) if released else compared.jsd
        found = published.select(config, pool, embeddings, jsd, job.seed, progress)
        return _told(found.choice(pool), embeddings, warnings, compared)
    # Only a sentence encoder is fine enough to tell a paraphrase from a question of the same form, but not
    # where it did not see the end: a vector of zeros is near none.
    fine = embeddings if config.embedder == "minilm" else lexical_vectors(_instructions(pool.rows))
    if cut.any():
        fine = np.where(cut[:, None], np.zeros((), embeddings.dtype), embeddings)
    questions = Questions(pool.rows, fine, config.duplicate_cosine)
    found = auto.select(
        job.config,
        pool,
        embeddings,
        questions,
        compared,
        job.seed,
        progress,
        wanted if len(wanted) else None,
        compared.by(inputs["pilot"]) if config.pilot_tokens is not None else None,
    )
    return _told(found.choice(pool), embeddings, warnings, compared)


def _cut_in_words(count: int) -> str:
    return (
        f"{count} instructions fill the {embed.ENCODER_TOKENS} tokens that paser.embedder minilm reads: they "
        "are clustered by their beginnings, and only equal ones are held to ask the same; paser.embedder "
        "tfidf reads them whole"
    )


def _told(choice: Choice, embeddings: Matrix, warnings: Sequence[str], compared: Compared) -> Choice:
    """With the embeddings, and how far a token's divergence may be off, where it comes of kept words."""
    choice = replace(choice, embeddings=embeddings, warnings=[*choice.warnings, *warnings])
    if compared.bound is None:
        return choice
    summary = {**choice.summary, "jsd_error_at_most_nats": compared.bound}
    return replace(choice, summary=summary, metrics={**choice.metrics, "jsd_error_nats": compared.bound})


def summed_over_prompts(jsd: NDArray[np.float64], encoded: Sequence[Encoded]) -> NDArray[np.float64]:
    """The sum over the tokens of each prompt of which `jsd` is the mean; the first has nothing before it."""
    return jsd * np.array([len(row.prompt_ids) - 1 for row in encoded])


def _embed(
    job: Job[SelectConfig],
    inputs: Mapping[str, Path],
    pool: Pool,
    targets: Targets,
    compared: Compared,
    progress: Progress,
) -> tuple[Matrix, NDArray[np.bool_]]:
    """Embeddings of the pool's rows, and behind them of the target rows, and of which an end was not seen."""
    config = job.config.paser
    ids = [*pool.ids, *targets.ids]
    all_seen = np.zeros(len(ids), dtype=bool)
    if config.embedder == "hidden":
        states = compared.states(pool.encoded)
        more = [compared.dense_states(targets.encoded, targets.ids, "targets")] if targets.encoded else []
        return embed.hidden(np.concatenate([states, *more])), all_seen
    instructions = _instructions(chain(pool.rows, targets.rows))
    if config.embedder == "tfidf":
        return embed.tfidf(instructions, job.seed), all_seen
    if "embedder" not in inputs:
        raise BadInput(
            "paser.embedder is minilm but the stage has no input `embedder`; give the encoder's folder"
        )
    return embed.minilm(inputs["embedder"], instructions, ids, job.dtype, job.device, progress)


def _instructions(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(row["instruction"]) for row in rows]
