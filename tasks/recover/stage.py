"""Stage `recover`: the pruned model trained on the selected rows.

Inputs: `pruned`, `selection` (selected.jsonl, summary.json) and, where distill_weight is above 0, `dense`.

Content: `model/` (a plain model folder), history.jsonl (one line a step), metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.job import Job, Progress
from resprout.tasks.recover.registry import METHODS, modules
from resprout.tasks.stage import stage


@stage(
    "recover",
    kind="recovery",
    libraries=("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy"),
    methods=modules,
    seeded=True,
)
def recover(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the recovered model and how training went."""
    from resprout.tasks.models.load import save_model
    from resprout.tasks.recover.lessons import prepare

    if job.config.distill_weight > 0 and "dense" not in inputs:
        raise BadInput(
            f"recover.distill_weight is {job.config.distill_weight} but there is no dense model to distil "
            "from; give the stage `dense`, or set distill_weight: 0"
        )
    lessons = prepare(job.config, inputs, job.seed, job.trust_remote_code)
    recovered = METHODS.get(job.config.method)(job, inputs, lessons, progress)
    save_model(recovered.model, workdir / "model", tokenizer_from=inputs["pruned"])
    with (workdir / "history.jsonl").open("w", encoding="utf-8") as file:
        for entry in recovered.history:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    text = json.dumps(recovered.metrics, indent=1, sort_keys=True)
    (workdir / "metrics.json").write_text(text + "\n", encoding="utf-8")
