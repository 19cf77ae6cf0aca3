"""The whole pool, on as many training tokens as the budget asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.select.pool import Choice, Pool

DECLARED = {"draws": False}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """All rows; the budget then only says how long recovery trains. Reads no weights."""
    progress(len(pool.rows), len(pool.rows), "rows")
    return Choice(list(range(len(pool.rows))), lambda row: {"reason": "all rows are taken"}, pool.budget)
