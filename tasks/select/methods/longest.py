"""The rows with the longest answers (Zhao et al., arXiv 2402.04833)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.select.pool import Choice, Pool, in_order

DECLARED = {"draws": False}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows with the most tokens in their answers, which are hard to beat; reads no weights.

    Answers that are cut come last: from them alone a model seldom learns to end its own. The paper's limit
    of tokens cuts none.
    """
    lengths = [len(row.response_ids) for row in pool.encoded]
    order = sorted(range(len(lengths)), key=lambda row: (pool.cut[row], -lengths[row], pool.ids[row]))
    progress(len(pool.rows), len(pool.rows), "rows")
    return in_order(order, pool, "among the longest answers")
