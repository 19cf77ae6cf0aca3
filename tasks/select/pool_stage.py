"""Stage `pool`: that the pool can give what the budget asks, found before anything expensive runs.

Inputs: `rows` (rows.jsonl) and `dense` (its tokenizer). Content: metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage
from resprout.tasks.select.registry import CHECKS, modules


@stage(
    "pool",
    kind="pool",
    section="select",
    reads={"rows": Reads("data"), "dense": Reads("model", of="source")},
    libraries=("transformers", "tokenizers"),
    methods=modules,
    computes=False,
)
def pool(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the pool's size and the budget; BadInput where the one does not hold the other."""
    from resprout.tasks.select.pool import read_pool

    found = read_pool(job, inputs)
    if job.config.method in CHECKS:
        CHECKS.get(job.config.method)(job.config, len(found.rows))
    metrics = {
        "pool_rows": len(found.rows),
        "pool_tokens": int(found.tokens.sum()),
        "left_out_rows": len(found.left_out),
        "budget_tokens": found.budget,
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
