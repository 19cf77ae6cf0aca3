"""Stage `calibrate`: calibration.safetensors and samples.jsonl from text and the dense model.

Inputs: `model` (its tokenizer always; its weights for cola and self_generated) and `text`, which
self_generated does not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import CalibrateConfig
from resprout.tasks.calibrate.registry import METHODS, modules
from resprout.tasks.job import Job, Progress
from resprout.tasks.stage import stage


@stage(
    "calibrate",
    kind="calibration",
    libraries=("torch", "transformers", "tokenizers", "scikit-learn", "numpy"),
    methods=modules,
    seeded=True,
)
def calibrate(
    job: Job[CalibrateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `calibration.safetensors` {"input_ids": int64 [samples, seq_len_tokens]} and `samples.jsonl`."""
    from safetensors.torch import save_file

    samples = METHODS.get(job.config.method)(job, inputs, progress)
    save_file({"input_ids": samples.input_ids.contiguous()}, workdir / "calibration.safetensors")
    with (workdir / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, note in enumerate(samples.notes):
            file.write(json.dumps({"index": index, **note}, sort_keys=True, ensure_ascii=False) + "\n")
