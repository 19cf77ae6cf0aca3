"""Stages of the rounds before the last: `regrow` changes a plan, `mask` applies it on the dense shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resprout.configs.presets import Unit
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage
from resprout.tasks.prune.stage import SCORES, sizes


@dataclass(frozen=True)
class Regrowth:
    """The share of the kept units that gives way."""

    units: tuple[Unit, ...]
    share: float

    def key_data(self) -> dict[str, Any]:
        return {"units": list(self.units), "share": self.share}


@dataclass(frozen=True)
class Masking:
    """Factor on the columns that read a removed unit; 0: it is masked."""

    keep: float = 0.0

    def key_data(self) -> dict[str, Any]:
        return asdict(self)


@stage(
    "regrow",
    kind="plan",
    reads={"plan": Reads("plan"), "scores": Reads("scores"), "growth": Reads("scores")},
    gives="plan",
    libraries=("torch",),
    computes=False,
)
def regrow(job: Job[Regrowth], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write plan.json and metrics.json: `plan` with its lowest units by `scores` given to others.

    Those are the highest in `growth`, the scores of criterion `gradient`.
    """
    from safetensors.torch import load_file

    from resprout.tasks.prune.plan import read_plan, write_plan
    from resprout.tasks.prune.planning import regrow_units
    from resprout.tasks.prune.scoring import from_tensors

    before = read_plan(inputs["plan"])
    scores, growth = (
        from_tensors(load_file(inputs[role] / SCORES), job.config.units) for role in ("scores", "growth")
    )
    made = regrow_units(before, scores, growth, job.config.share)
    write_plan(made, workdir)
    came = sum(
        len(set(units) - set(old.kept()[kind]))
        for old, new in zip(before.layers, made.layers, strict=True)
        for kind, units in new.kept().items()
    )
    metrics = {**sizes(made), "regrown_units": came}
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")


@stage(
    "mask",
    kind="model",
    reads={"model": Reads("model"), "plan": Reads("plan")},
    weights=True,
    libraries=("torch", "transformers"),
)
def mask(job: Job[Masking], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write `model` with its shape, but without what reads the units that `plan` removes, and masked.json."""
    from resprout.tasks.models.load import load_model, save_model
    from resprout.tasks.prune.masking import mask as masked
    from resprout.tasks.prune.masking import write_masked
    from resprout.tasks.prune.plan import read_plan

    model = load_model(inputs["model"], job.dtype, job.device, job.trust_remote_code)
    columns = masked(model, read_plan(inputs["plan"]), job.config.keep)
    save_model(model.cpu(), workdir, tokenizer_from=inputs["model"])
    if columns:
        write_masked(columns, workdir)
