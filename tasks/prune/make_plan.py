"""From a model and calibration tokens to a plan and the scores behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.configs.stages import Unit
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.size import BYTES, Shape, shape_of
from resprout.tasks.prune.contracts import Bench, Costs, Request
from resprout.tasks.prune.gone import left_of, ranked_last, remaining
from resprout.tasks.prune.latency import TIMED, LatencyTable, measure, measure_models, smaller
from resprout.tasks.prune.plan import Latency, LayerPlan, Plan, Size
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA
from resprout.tasks.prune.resolve import resolve
from resprout.tasks.prune.score import best_units, score_units
from resprout.tasks.prune.spared import allocate
from resprout.tasks.prune.target import request
from resprout.tasks.prune.target_warnings import warnings_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

APART = 0.025
"""Share by which a model's time may differ from what the table says before the table is corrected."""
CORRECTIONS = 2


def make_plan(
    model: PreTrainedModel,
    config: PruneConfig,
    input_ids: Tensor,
    progress: Progress = silent,
    general: Tensor | None = None,
) -> tuple[Plan, list[dict[Unit, Tensor]]]:
    """The plan that `config` asks for, and scores [units, features per unit] for each layer and kind.

    The model is not changed; `general` as of `score_units`. A target out of reach raises BadInput before
    anything is computed.
    """
    dense = shape_of(model.config.to_dict())
    dtype = str(model.dtype).removeprefix("torch.")
    request(dense, config, dtype)
    names = resolve(config)
    # Settings that an allocator refuses show before anything is computed.
    ALLOCATORS.get(names.allocator)(**names.allocator_settings)
    criterion = CRITERIA.get(names.criterion)(**names.criterion_settings)
    scores = score_units(model, criterion, config.units, input_ids, progress, general=general)
    return plan_from(scores, dense, dtype, config, Bench(model, input_ids, progress=progress)), scores


def plan_from(
    scores: list[dict[Unit, Tensor]],
    dense: Shape,
    dtype: str,
    config: PruneConfig,
    bench: Bench | None = None,
    before: Plan | None = None,
) -> Plan:
    """The plan for a model of shape `dense`, held in `dtype`, whose units have these scores.

    `bench` must be there for allocators that try the model. What the plan `before` removed stays gone.
    """
    names = resolve(config)
    declared = CRITERIA.entry(names.criterion).declared
    asked = request(dense, config, dtype)
    wanted, spent_on = replace(asked, cumulative=declared.get("cumulative", False)), scores
    if before is not None:
        before.check_fits(dense)
        wanted = replace(wanted, shape=left_of(before, wanted.shape))
        scores, spent_on = ranked_last(before, scores), remaining(before, scores)
        if ALLOCATORS.entry(names.allocator).declared["tries"]:
            # It runs the model, which has all units still.
            spent_on = scores
    allocator = ALLOCATORS.get(names.allocator)(**names.allocator_settings)
    latency: Latency | None = None
    if config.target.timed:
        granted, latency = _in_time(
            config.target, dense, wanted, bench, lambda timed: allocate(allocator, timed, spent_on, bench)
        )
    else:
        granted = allocate(allocator, wanted, spent_on, bench)
    alike = not ALLOCATORS.entry(names.allocator).declared["per_layer"]
    return Plan(
        model_type=dense.model_type,
        method=names.method,
        criterion=names.criterion,
        allocator=names.allocator,
        allocator_settings=dict(names.allocator_settings),
        repair=names.repair,
        repair_settings=dict(names.repair_settings),
        units=config.units,
        layout=config.layout,
        round_to=config.round_to,
        dtype=dtype,
        dense=Size.of(dense.sizes(dtype)),
        dense_layers=dense.layers,
        requested=_requested(dense, wanted, dtype),
        reached=Size.of(granted.sizes(dtype)),
        latency=latency,
        warnings=tuple(warnings_for(dense, wanted, config.target, granted, alike)),
        layers=tuple(
            _keep(index, dense, granted, scores[index])
            for index in range(granted.layers)
            if granted.ffn[index] or granted.kv_heads[index]
        ),
        hidden=_keep_hidden(scores, granted.hidden) if "hidden" in config.units else None,
    )


def _in_time(
    target: TargetConfig,
    dense: Shape,
    wanted: Request,
    bench: Bench | None,
    spend: Callable[[Request], Shape],
) -> tuple[Shape, Latency]:
    """Widths that take the time that the target allows, by a table that the whole model agrees with.

    Layers that are timed one by one do not quite add up to a model. So the model is timed with the widths
    that were found, and where it lies apart from the table that is corrected and spent anew.
    """
    if bench is None:
        raise TypeError("a latency is measured on a bench")
    table = measure(bench.model, bench.input_ids, smaller(dense, wanted.round_to))
    for left in reversed(range(CORRECTIONS + 1)):
        limit, costs = _in_milliseconds(target, dense, wanted, table)
        granted = spend(replace(wanted, costs=costs))
        dense_ms, ms = measure_models(bench.model, bench.input_ids, granted)
        whole, reached = table.total(dense), table.total(granted)
        measured = ms if target.latency_ms else whole * ms / dense_ms
        if abs(measured / reached - 1) <= APART or not left:
            break
        table = table.corrected(dense, dense_ms, granted, ms)
    return granted, Latency(dense=whole, requested=limit, reached=reached, measured=measured)


def _in_milliseconds(
    target: TargetConfig, dense: Shape, wanted: Request, table: LatencyTable
) -> tuple[float, Costs]:
    """The milliseconds allowed by a table, and what there is to spend of them."""
    whole = table.total(dense)
    stays = table.rest_ms + sum(
        table.of(kind, count)
        for kind in TIMED
        for layer, count in enumerate(dense.counts(kind))
        if kind not in wanted.kinds or (wanted.free is not None and layer not in wanted.free)
    )
    limit = target.latency_ms or whole * (target.latency_ratio or 1.0)
    if not stays < limit <= whole:
        raise BadInput(
            f"prune.target allows {limit:.1f} ms of a forward pass, but the model takes {whole:.1f} here, of "
            f"which what prune.units leaves alone takes {stays:.1f}; give a time between, or add units"
        )
    return limit, Costs(limit - stays, lambda kind, _, count: table.of(kind, count))


def _keep(index: int, dense: Shape, granted: Shape, scores: dict[Unit, Tensor]) -> LayerPlan:
    before, after = dense.widths(index), granted.widths(index)
    each = dense.heads_per_group[index]
    kept: dict[Unit, tuple[int, ...]] = {
        "ffn": tuple(range(before.ffn)),
        "kv_groups": tuple(range(before.kv_heads)),
    }
    for kind in kept:
        if kind in scores:
            kept[kind] = tuple(best_units(scores[kind], granted.counts(kind)[index]))
    heads: tuple[int, ...] | None = None
    if "heads" in scores:
        best = best_units(scores["heads"], after.heads_per_group, before.kv_heads)
        heads = tuple(head for head in best if head // each in kept["kv_groups"])
    experts = tuple(best_units(scores["experts"], after.experts)) if "experts" in scores else None
    gone = any(not ffn and not kv_heads for ffn, kv_heads in zip(granted.ffn, granted.kv_heads, strict=True))
    expert_ffn: tuple[int, ...] | None = None
    if before.experts and "ffn" in scores:
        best = best_units(scores["ffn"], after.ffn, before.experts)
        stay = range(before.experts) if experts is None else experts
        expert_ffn = tuple(unit for unit in best if unit // before.ffn in stay)
        kept["ffn"] = tuple(range(after.ffn))
    if not after.ffn:
        kept["ffn"] = ()
    if not after.kv_heads:
        kept["kv_groups"] = ()
    return LayerPlan(
        index=index if gone else None,
        ffn=kept["ffn"],
        kv_groups=kept["kv_groups"],
        heads=heads,
        experts=experts,
        expert_ffn=expert_ffn,
    )


def _keep_hidden(scores: list[dict[Unit, Tensor]], keep: int) -> tuple[int, ...]:
    total = sum((by_kind["hidden"] for by_kind in scores[1:]), scores[0]["hidden"])
    return tuple(best_units(total, keep))


def _requested(dense: Shape, wanted: Request, dtype: str) -> Size:
    return Size(
        params=wanted.limit,
        non_embedding_params=wanted.limit - dense.embedding_params,
        bytes=wanted.limit * BYTES[dtype],
    )
