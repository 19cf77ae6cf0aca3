"""Random rows of each category, as many tokens of each as it has of the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.select.budget import full_budget
from resprout.tasks.select.pool import Choice, Pool, fill
from resprout.tasks.select.rows import check_categories

DECLARED = {"needs_categories": True}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows drawn at random from each category by its share of the pool; reads no weights.

    Raises:
        BadInput: no row has a category.
    """
    check_categories(pool.rows)
    members: dict[str, list[int]] = defaultdict(list)
    order = np.random.default_rng(job.seed).permutation(len(pool.rows)).tolist()
    for row in order:
        members[str(pool.rows[row].get("category") or "")].append(row)
    strata = sorted(members)
    held = [int(pool.costs[members[name]].sum()) for name in strata]
    grants = full_budget(pool.budget, held, held)
    accepted = [
        row
        for name, grant in zip(strata, grants, strict=True)
        for row in fill(members[name], pool.costs, grant)
    ]
    chosen = set(accepted)
    left = pool.budget - int(pool.costs[accepted].sum())
    accepted += fill([row for row in order if row not in chosen], pool.costs, left)
    chosen = set(accepted)
    progress(len(pool.rows), len(pool.rows), "rows")
    return Choice(
        accepted,
        lambda row: {"reason": "drawn at random from its category" if row in chosen else "beyond the budget"},
        granted=pool.budget,
        summary={
            "strata": [
                {"category": name, "rows": len(members[name]), "granted": grant}
                for name, grant in zip(strata, grants, strict=True)
            ]
        },
    )
