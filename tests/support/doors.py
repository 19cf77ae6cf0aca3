"""A model through the doors of the stages score, plan and prune, as a run takes it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.prune.stage import plan, prune, score


def write_calibration(folder: Path, ids: Tensor) -> Path:
    """The folder, with the artifact of calibration tokens, int64 [samples, tokens], in it."""
    folder.mkdir()
    save_file({"input_ids": ids}, folder / "calibration.safetensors")
    return folder


def through_the_doors(config: PruneConfig, model: Path, calibration: Path, into: Path) -> dict[str, Path]:
    """What each stage leaves, by role: scores, plan and pruned, which are folders in `into`."""
    made = {"model": model, "calibration": calibration}
    for role, stage in (("scores", score), ("plan", plan), ("pruned", prune)):
        (into / role).mkdir(parents=True)
        stage.body(Job(config), dict(made), into / role, silent)
        made[role] = into / role
    return made
