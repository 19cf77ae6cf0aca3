"""Stages of pruning: `score` values the units, `plan` spends the budget, `prune` applies a plan and repairs.

Scores are an artifact of their own: another target, allocator or rounding needs a new plan, no forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import StageFailed
from resprout.configs.schema import PruneConfig, PruneRound
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.core.stage import CardLine, Model, Reads, calibration_tokens, stage
from resprout.tasks.prune.compatibility import need_the_whole_model, needs_general, resolve, tries_model
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS
from resprout.tasks.prune.rounds import schedule_of, target_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from resprout.tasks.prune.plan import Plan

SCORES = "scores.safetensors"


def plan_methods(config: PruneConfig) -> list[str]:
    """The module of the allocator that the config selects; the criterion is in the scores' digest."""
    return [ALLOCATORS.entry(resolve(config).allocator).module]


def prune_methods(config: PruneConfig) -> list[str]:
    """The module of the repair that the config selects; criterion and allocator are in the plan's digest."""
    return resolve(config).prune_modules


def plan_settings(config: PruneConfig) -> dict[str, Any]:
    """The settings that decide the plan: the section with its preset spelled out, without `ridge`.

    Criterion and repair are among them because plan.json names them; the machine is where it is timed. A
    schedule shows in the target and in the inputs of each round.
    """
    from resprout.tasks.core.hardware import fingerprint

    unused = ("method", "ridge", "memory", "general", "schedule", "schedule_settings")
    section = {name: value for name, value in config.key_data().items() if name not in unused}
    timed = {"hardware": fingerprint()} if config.target.timed else {}
    return {**section, **asdict(resolve(config)), **timed}


def prune_settings(config: PruneConfig) -> dict[str, Any]:
    """The settings that decide the pruned weights: those of the plan, and `ridge`."""
    return {**plan_settings(config), "ridge": config.ridge}


def score_methods(config: PruneConfig) -> list[str]:
    """The module of the criterion that the config selects."""
    return [CRITERIA.entry(resolve(config).criterion).module]


def score_settings(config: PruneConfig) -> dict[str, Any]:
    """The settings that decide the scores: neither the target nor the allocator."""
    names = resolve(config)
    settings = dict(names.criterion_settings)
    return {"criterion": names.criterion, "criterion_settings": settings, "units": list(config.units)}


def params(config: PruneConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    names = resolve(config)
    ((kind, value),) = config.target.model_dump(exclude_none=True).items()
    return {
        "method": names.method,
        "criterion": names.criterion,
        "allocator": names.allocator,
        "repair": names.repair,
        "schedule": config.schedule,
        "units": ", ".join(config.units),
        "layout": config.layout,
        "target": f"{kind}={value}",
        "round_to": config.round_to,
    }


def card(config: PruneConfig) -> CardLine:
    """The schedule, where it has rounds; the plan says the rest."""
    rounds = len(schedule_of(config)) > 1
    return CardLine(f", in rounds by schedule {config.schedule}" if rounds else "")


def check(config: PruneConfig, base: Path) -> None:
    """BadInput where parts of the section do not fit together, or a setting is out of bounds.

    Methods are imported only where a setting of theirs is given.
    """
    names = resolve(config)
    for part, known in (("criterion", CRITERIA), ("allocator", ALLOCATORS), ("repair", REPAIRS)):
        if getattr(config, f"{part}_settings"):
            known.get(getattr(names, part))(**getattr(names, f"{part}_settings"))
    schedule_of(config)


@stage(
    "score-shard",
    kind="scores-shard",
    title="score",
    libraries=("torch", "transformers"),
    methods=score_methods,
    settings=score_settings,
    tokens=calibration_tokens,
)
def score_shard(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the scores of the share's layers."""
    _score(job, inputs, workdir, progress)


@stage(
    "score",
    kind="unit-scores",
    section="prune",
    reads={
        "model": Reads("model"),
        "calibration": Reads("data"),
        "general": Reads("data", optional=True),
    },
    gives="scores",
    reported=True,
    libraries=("torch", "transformers"),
    methods=score_methods,
    settings=score_settings,
    shard=score_shard,
    tokens=calibration_tokens,
)
def score(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write scores.safetensors, what each unit of `model` is worth on `calibration`.

    Criteria that need open-domain text look at `general` too, a calibration of it.
    """
    from safetensors.torch import load_file, save_file

    if shards := shards_in(inputs):
        tensors = {name: one for folder in shards for name, one in load_file(folder / SCORES).items()}
        save_file(tensors, workdir / SCORES)
    else:
        _score(job, inputs, workdir, progress)


def _score(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    from safetensors.torch import save_file

    from resprout.tasks.models.load import load_for
    from resprout.tasks.models.shape import shape_of
    from resprout.tasks.prune.scoring import as_tensors, score_units

    names = resolve(job.config)
    layers = shape_of(inputs["model"]).layers
    whole = [] if job.config.memory == "stream" else need_the_whole_model(job.config)
    model = load_for(_streaming(job), inputs["model"], resident=whole[0] if whole else "")
    criterion = CRITERIA.get(names.criterion)(**names.criterion_settings)
    input_ids = _input_ids(inputs["calibration"])
    general = _input_ids(inputs["general"]) if needs_general(job.config) else None
    scores = score_units(model, criterion, job.config.units, input_ids, progress, job.share, general)
    save_file(dict(as_tensors(scores, job.share.of(layers).start)), workdir / SCORES)


@stage(
    "plan",
    kind="plan",
    section="prune",
    reads={
        "model": Reads("model"),
        "calibration": Reads("data"),
        "scores": Reads("scores"),
        "before": Reads("plan", optional=True),
    },
    reported=True,
    tagged=True,
    libraries=("torch", "transformers"),
    methods=plan_methods,
    settings=plan_settings,
    params=params,
    card=card,
    checks={"prune": check},
    tokens=calibration_tokens,
)
def plan(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write plan.json and metrics.json from `model`, `calibration` and `scores`.

    The model's weights are read only where it is tried: by the allocator, or for its latency. What the plan
    `before`, where there is one, removed stays removed.
    """
    from safetensors.torch import load_file

    from resprout.tasks.models.load import load_for
    from resprout.tasks.models.shape import shape_of
    from resprout.tasks.prune.interfaces import Bench
    from resprout.tasks.prune.plan import read_plan, write_plan
    from resprout.tasks.prune.planning import plan_from
    from resprout.tasks.prune.scoring import from_tensors

    config, shape = job.config, shape_of(inputs["model"])
    if isinstance(config, PruneRound):
        target = target_at(config.target, config.done, shape, job.dtype)
        config = config.model_copy(update={"target": target})
    scores = from_tensors(load_file(inputs["scores"] / SCORES), config.units)
    bench = None
    if tries_model(config, resolve(config).allocator):
        model = load_for(job, inputs["model"], resident="planning by trying the model")
        bench = Bench(model, _input_ids(inputs["calibration"]), progress=progress)
    before = read_plan(inputs["before"]) if "before" in inputs else None
    made = plan_from(scores, shape, job.dtype, config, bench, before)
    made = made.model_copy(update={"model_digest": job.digests.get("model")})
    write_plan(made, workdir)
    metrics = sizes(made)
    if made.latency is not None:
        metrics |= {f"{name}_ms": value for name, value in made.latency.model_dump().items()}
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")


def sizes(made: Plan) -> dict[str, float]:
    """The sizes that a plan was made for, asked for and reached, as metrics."""
    metrics: dict[str, float] = {
        f"{name}_{key}": value
        for name, size in (("dense", made.dense), ("requested", made.requested), ("reached", made.reached))
        for key, value in size.model_dump().items()
    }
    metrics["reached_params_ratio"] = made.reached.params / made.dense.params
    metrics["reached_non_embedding_ratio"] = (
        made.reached.non_embedding_params / made.dense.non_embedding_params
    )
    return metrics


@stage(
    "prune",
    kind="model",
    section="prune",
    reads={"model": Reads("model"), "calibration": Reads("data"), "plan": Reads("plan")},
    leaves=Model("pruned"),
    libraries=("torch", "transformers"),
    methods=prune_methods,
    settings=prune_settings,
    tokens=calibration_tokens,
)
def prune(job: Job[PruneConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the pruned model's folder from `model`, `calibration` and `plan`."""
    from resprout.tasks.models.anatomy import is_offloaded
    from resprout.tasks.models.load import load_for, save_model
    from resprout.tasks.models.shape import count
    from resprout.tasks.prune.plan import read_plan
    from resprout.tasks.prune.surgery import apply

    made = read_plan(inputs["plan"])
    made.check_model(job.digests.get("model"))
    whole = [] if job.config.memory == "stream" else need_the_whole_model(job.config)
    model = load_for(_streaming(job), inputs["model"], resident=whole[0] if whole else "")
    if is_offloaded(model):
        _prune_streamed(job, model, made, inputs, workdir, progress)
        return
    apply(model, made, _input_ids(inputs["calibration"]), job.config.ridge, progress)
    if count(model).params != made.reached.params:
        raise StageFailed(
            f"the pruned model has {count(model).params} parameters where the plan says "
            f"{made.reached.params}; this is a defect of resprout, please report it with the plan"
        )
    save_model(model.cpu(), workdir, tokenizer_from=inputs["model"])


def _streaming(job: Job[PruneConfig]) -> Job[PruneConfig]:
    """The job with no memory for layers, where the section says so."""
    from resprout.tasks.models.load import without_room

    return job if job.config.memory == "whole" else without_room(job)


def _prune_streamed(
    job: Job[PruneConfig],
    model: PreTrainedModel,
    made: Plan,
    inputs: Mapping[str, Path],
    workdir: Path,
    progress: Progress,
) -> None:
    """As `prune`, one layer in memory at a time; it writes the same bytes."""
    from resprout.tasks.models.load import save_beside_weights
    from resprout.tasks.models.offload import ModelWriter
    from resprout.tasks.models.shape import shape_of
    from resprout.tasks.prune.surgery import apply, pruned_shape

    dense = shape_of(inputs["model"])
    pruned = pruned_shape(made, dense)
    writer = ModelWriter(model, dict(pruned.tensors()), workdir)

    def take(index: int, tensors: Mapping[str, Tensor]) -> None:
        prefix = f"{pruned.family.layer_prefix}{index}."
        writer.put({prefix + name: tensor for name, tensor in tensors.items()})

    apply(model, made, _input_ids(inputs["calibration"]), job.config.ridge, progress, take)
    writer.put({name: model.get_parameter(name) for name in pruned.family.ends(pruned.config)})
    writer.close()
    save_beside_weights(model, workdir, tokenizer_from=inputs["model"])


def _input_ids(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "calibration.safetensors")["input_ids"].long()
