"""Stage `calibrate`: calibration.safetensors and samples.jsonl from text and the dense model.

Inputs: `model` (its tokenizer always; its weights for cola and self_generated) and `text`, which
self_generated does not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import CalibrateConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry
from resprout.tasks.core.stage import Reads, Volume, stage

if TYPE_CHECKING:
    from resprout.tasks.calibrate.samples import Samples

METHODS: Registry[Callable[[Job[CalibrateConfig], Mapping[str, Path], Progress], Samples]] = Registry(
    "calibration method", "resprout.tasks.calibrate.methods", function="draw"
)


def modules(config: CalibrateConfig) -> list[str]:
    """The module of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def params(config: CalibrateConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    return {
        "calibration": config.method,
        "calibration_samples": config.samples,
        "calibration_seq_len_tokens": config.seq_len_tokens,
    }


def lengths(config: CalibrateConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    return {"calibrate.seq_len_tokens": config.seq_len_tokens}


def check(config: CalibrateConfig, base: Path) -> None:
    """BadInput for a method that is not there."""
    METHODS.entry(config.method)


def tokens(config: Mapping[str, Any], volume: Volume) -> float:
    """All tokens of the samples."""
    return float(config["samples"] * config["seq_len_tokens"])


@stage(
    "calibrate",
    kind="calibration",
    section="calibrate",
    reads={
        "model": Reads("model", of="source"),
        "text": Reads("data", of="calibration_text", optional=True),
    },
    gives="calibration",
    libraries=("torch", "transformers", "tokenizers", "scikit-learn", "numpy"),
    methods=modules,
    seeded=True,
    params=params,
    lengths=lengths,
    checks={"calibrate.method": check},
    tokens=tokens,
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
