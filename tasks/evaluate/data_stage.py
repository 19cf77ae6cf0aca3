"""Stage `evaluation_data`: that text and tasks can be scored, found before anything expensive runs.

Inputs: `dense` (its tokenizer), `text`, and `task_<name>` for each zero-shot task. Content: metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage
from resprout.tasks.evaluate.task_files import TASK_ROLE


@stage(
    "evaluation_data",
    kind="evaluation-data",
    title="evaluation data",
    section="evaluate",
    reads={
        "dense": Reads("model", of="source"),
        "text": Reads("data", optional=True),
        "tasks": Reads("data", group=True),
    },
    libraries=("transformers", "tokenizers", "lm_eval"),
    computes=False,
)
def evaluation_data(
    job: Job[EvaluateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write how many tokens and items there are; BadInput where text or a task cannot be scored."""
    from resprout.tasks.evaluate.held_out import held_out
    from resprout.tasks.models.load import load_tokenizer

    ids, _ = held_out(
        inputs["text"], load_tokenizer(inputs["dense"], job.trust_remote_code), job.config.perplexity
    )
    metrics = {"evaluation_tokens": len(ids)}
    if job.config.zero_shot is not None:
        from resprout.tasks.evaluate.zero_shot import count_items

        zero = job.config.zero_shot
        for one in zero.tasks:
            metrics[f"{one.name}_items"] = count_items(one.name, inputs[TASK_ROLE + one.name], zero.limit)
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
