"""Instruction-following difficulty (Li et al., arXiv 2308.12032; by perplexities in arXiv 2402.00530)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.models.load import load_for
from resprout.tasks.select.kept_rows import KeptRows
from resprout.tasks.select.likelihood import following_difficulty
from resprout.tasks.select.pool import Choice, Pool, in_order

DECLARED = {"reads": ["dense"], "draws": False}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows whose question helps the dense model least to find the answer, but helps: PPL(y|x) / PPL(y) below
    1.

    Raises:
        BadInput: on no row the question helps.
    """
    kept = KeptRows(job.checkpoints, progress)
    ratio = following_difficulty(load_for(job, inputs["dense"]), pool.encoded, pool.ids, kept)
    helped = np.flatnonzero(ratio < 1)
    if not len(helped):
        raise BadInput(
            f"select.method is ifd, but on none of {len(pool.rows)} rows the question makes the answer "
            "likelier to the dense model; look at the rows and at select.template, or give select.method: "
            "random"
        )
    order = sorted(helped.tolist(), key=lambda row: (-ratio[row], pool.ids[row]))
    found = in_order(order, pool, "hardest to follow")
    chosen = set(found.accepted)

    def facts(row: int) -> dict[str, str]:
        if np.isnan(ratio[row]):
            return {"reason": "its answer is one token, of which nothing is known without the question"}
        if ratio[row] >= 1:
            return {"reason": f"its question does not help: IFD {ratio[row]:.3f}"}
        return {
            "reason": f"{'among the hardest' if row in chosen else 'easier'} to follow: IFD {ratio[row]:.3f}"
        }

    return Choice(found.accepted, facts, pool.budget, metrics={"helped_rows": len(helped)})
