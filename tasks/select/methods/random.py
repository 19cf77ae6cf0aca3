"""Random rows: what every other selection has to beat at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.select.pool import Choice, Pool, in_order


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows drawn at random until the budget is full: the baseline at equal tokens; reads no weights."""
    order = np.random.default_rng(job.seed).permutation(len(pool.rows)).tolist()
    progress(len(pool.rows), len(pool.rows), "rows")
    return in_order(order, pool, "drawn at random")
