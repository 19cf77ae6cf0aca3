"""Stage `divergence-shard`: divergence of the pruned from the dense model on a share of the pool's rows.

Inputs: those of `select`. Content: divergence.safetensors with the rows' numbers and what was found for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import stage


def settings(config: SelectConfig) -> dict[str, Any]:
    """What decides the divergence: neither budget nor clusters."""
    return {
        "template": config.template,
        "max_len_tokens": config.max_len_tokens,
        "temperature": config.paser.temperature,
        "prompt_states": config.paser.embedder == "hidden",
    }


@stage(
    "divergence-shard",
    kind="divergence-shard",
    title="select",
    libraries=("torch", "transformers", "tokenizers", "numpy"),
    settings=settings,
)
def divergence_shard(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the divergence on the rows of the share's batches."""
    from resprout.tasks.select.divergence import FILE, batches_of, write_rows
    from resprout.tasks.select.paser import measure_rows
    from resprout.tasks.select.pool import read_pool

    pool = read_pool(job, inputs)
    found = measure_rows(job, inputs, pool, progress)
    rows = [row for batch in batches_of(pool.encoded, job.device, job.share) for row in batch]
    write_rows(found, rows, workdir / FILE)
