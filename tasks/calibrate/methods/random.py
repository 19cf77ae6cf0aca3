"""Random calibration windows: the baseline of every calibration study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import CalibrateConfig
from resprout.tasks.calibrate.samples import Samples, cut, draw_windows, take
from resprout.tasks.core.job import Job, Progress


def draw(job: Job[CalibrateConfig], inputs: Mapping[str, Path], progress: Progress) -> Samples:
    """Windows of the text drawn at random, without replacement; of the model only the tokenizer is read."""
    windows = cut(job.config, inputs, job.trust_remote_code)
    chosen = draw_windows(job.config, windows, job.config.samples, job.seed)
    progress(len(chosen), len(chosen), "windows")
    return take(windows, chosen, [{"reason": "drawn at random"} for _ in chosen])
