"""Doors of pruning: `plan` scores and allocates, `prune` applies a plan and repairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.job import Job, Progress
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.resolve import resolve
from resprout.tasks.share import shards_in
from resprout.tasks.stage import stage

if TYPE_CHECKING:
    from torch import Tensor


SCORES = "scores.safetensors"


def plan_methods(config: PruneConfig) -> list[str]:
    """Modules of the criterion and the allocator that the config selects."""
    return resolve(config).plan_modules


def prune_methods(config: PruneConfig) -> list[str]:
    """The module of the repair that the config selects; criterion and allocator are in the plan's digest."""
    return resolve(config).prune_modules


def plan_settings(config: PruneConfig) -> dict[str, Any]:
    """What decides the plan: the section with the names that a preset stands for, and without `ridge`.

    The repair is among them because plan.json names it.
    """
    unused = ("method", "ridge")
    section = {name: value for name, value in config.key_data().items() if name not in unused}
    return {**section, **asdict(resolve(config))}


def prune_settings(config: PruneConfig) -> dict[str, Any]:
    """What decides the pruned weights: the settings of the plan, and `ridge`."""
    return {**plan_settings(config), "ridge": config.ridge}


def score_methods(config: PruneConfig) -> list[str]:
    """The module of the criterion that the config selects."""
    return [CRITERIA.entry(resolve(config).criterion).module]


def score_settings(config: PruneConfig) -> dict[str, Any]:
    """What decides the scores: neither the target nor how it is spent."""
    names = resolve(config)
    settings = dict(names.criterion_settings)
    return {"criterion": names.criterion, "criterion_settings": settings, "units": list(config.units)}


@stage(
    "score-shard",
    kind="scores-shard",
    libraries=("torch", "transformers"),
    methods=score_methods,
    settings=score_settings,
)
def score_shard(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the scores of the share's layers, and the model's config.json."""
    from safetensors.torch import save_file

    from resprout.tasks.models.anatomy import anatomy
    from resprout.tasks.models.load import load_model
    from resprout.tasks.prune.score import as_tensors, score

    model = load_model(inputs["model"], job.dtype, job.device, job.trust_remote_code)
    names = resolve(job.config)
    criterion = CRITERIA.get(names.criterion)(**names.criterion_settings)
    input_ids = _input_ids(inputs["calibration"])
    scores = score(model, criterion, job.config.units, input_ids, progress, job.share)
    first = job.share.of(len(anatomy(model).layers)).start
    save_file(dict(as_tensors(scores, first)), workdir / SCORES)
    (workdir / "config.json").write_text(json.dumps(model.config.to_dict(), sort_keys=True))


@stage(
    "plan",
    kind="plan",
    libraries=("torch", "transformers"),
    methods=plan_methods,
    settings=plan_settings,
    shard=score_shard,
)
def plan(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write plan.json, scores.safetensors and metrics.json from `model` and `calibration`."""
    from safetensors.torch import load_file, save_file

    from resprout.tasks.models.load import load_model
    from resprout.tasks.models.size import shape_of
    from resprout.tasks.prune.make_plan import make_plan, plan_from
    from resprout.tasks.prune.plan import write_plan
    from resprout.tasks.prune.score import as_tensors, from_tensors

    if shards := shards_in(inputs):
        tensors = {name: one for folder in shards for name, one in load_file(folder / SCORES).items()}
        scores = from_tensors(tensors, job.config.units)
        shape = shape_of(json.loads((shards[0] / "config.json").read_text()))
        made = plan_from(scores, shape, job.dtype, job.config)
    else:
        model = load_model(inputs["model"], job.dtype, job.device, job.trust_remote_code)
        made, scores = make_plan(model, job.config, _input_ids(inputs["calibration"]), progress)
    write_plan(made, workdir)
    save_file(dict(as_tensors(scores)), workdir / SCORES)
    metrics = {
        f"{name}_{key}": value
        for name, size in (("dense", made.dense), ("requested", made.requested), ("reached", made.reached))
        for key, value in size.model_dump().items()
    }
    metrics["reached_params_ratio"] = made.reached.params / made.dense.params
    metrics["reached_non_embedding_ratio"] = (
        made.reached.non_embedding_params / made.dense.non_embedding_params
    )
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")


@stage(
    "prune", kind="model", libraries=("torch", "transformers"), methods=prune_methods, settings=prune_settings
)
def prune(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the pruned model's folder from `model`, `calibration` and `plan`."""
    from resprout.tasks.models.load import load_model, save_model
    from resprout.tasks.models.size import count
    from resprout.tasks.prune.apply import apply
    from resprout.tasks.prune.plan import read_plan

    made = read_plan(inputs["plan"])
    model = load_model(inputs["model"], job.dtype, job.device, job.trust_remote_code)
    apply(model, made, _input_ids(inputs["calibration"]), job.config.ridge, progress)
    if count(model).params != made.reached.params:
        raise StageFailed(
            f"the pruned model has {count(model).params} parameters where the plan says "
            f"{made.reached.params}; this is a defect of resprout, please report it with the plan"
        )
    save_model(model.cpu(), workdir, tokenizer_from=inputs["model"])


def _input_ids(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "calibration.safetensors")["input_ids"].long()
