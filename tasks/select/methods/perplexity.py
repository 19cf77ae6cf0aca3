"""Rows of middling perplexity (Marion et al., arXiv 2309.04564)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.models.load import load_for
from resprout.tasks.select.kept_rows import KeptRows
from resprout.tasks.select.likelihood import response_nll
from resprout.tasks.select.pool import Choice, Pool, in_order

DECLARED = {"reads": ["dense"], "draws": False}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows around the median of the dense model's perplexity on the answers: neither noise nor platitudes."""
    kept = KeptRows(job.checkpoints, progress)
    nll = response_nll(load_for(job, inputs["dense"]), pool.encoded, pool.ids, kept)
    ranks = np.empty(len(nll))
    ranks[np.lexsort((np.arange(len(nll)), nll))] = np.arange(len(nll))
    distance = np.abs(ranks - (len(nll) - 1) / 2)
    order = sorted(range(len(nll)), key=lambda row: (distance[row], pool.ids[row]))
    found = in_order(order, pool, "near the median")
    chosen = set(found.accepted)

    def facts(row: int) -> dict[str, str]:
        where = "near the median" if row in chosen else "further from the median"
        return {"reason": f"{where}: perplexity {np.exp(nll[row]):.4g}"}

    return Choice(found.accepted, facts, pool.budget)
