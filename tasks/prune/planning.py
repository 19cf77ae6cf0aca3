"""Planning: from scores to the units that each layer keeps; cumulative plans, and plans with regrowth.

Plans of all rounds of a schedule are for the dense shape, and so are their scores. Units removed in earlier
rounds stay removed: allocators are asked for widths of at most those that the earlier plan left, so that
shares which they promise are shares of that, and removed units rank last.

With regrowth (GraNet, Liu et al., arXiv 2106.10404) some of the units that a plan keeps are exchanged for
removed ones that have large gradients. Of the n units that a layer (of query heads: each KV group) keeps, the
ceil(share * n) with the lowest scores go, at least one stays, and as many come back: of all that are not kept
those with the largest gradient. So the plan's sizes stay; ceil as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput
from resprout.configs.presets import Unit
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.shape import BYTES, Shape, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.interfaces import Bench, Costs, LayerScores, Model, Request, Scores
from resprout.tasks.prune.latency import TIMED, LatencyTable, measure, measure_models, smaller
from resprout.tasks.prune.plan import REMOVED_LAYER, Latency, LayerPlan, Plan, Size
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA
from resprout.tasks.prune.scoring import best_units, score_units
from resprout.tasks.prune.target import allocate, request, warnings_for

if TYPE_CHECKING:
    from torch import Tensor

APART = 0.025
"""Share by which a model's time may differ from what the table says before the table is corrected."""
CORRECTIONS = 2


def make_plan(
    model: Model,
    config: PruneConfig,
    input_ids: Tensor,
    progress: Progress = silent,
    general: Tensor | None = None,
) -> tuple[Plan, LayerScores]:
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
    scores: LayerScores,
    dense: Shape,
    dtype: str,
    config: PruneConfig,
    bench: Bench | None = None,
    before: Plan | None = None,
) -> Plan:
    """The plan for a model of shape `dense`, held in `dtype`, whose units have these scores.

    `bench` must be there for allocators that try the model. What the plan `before` removed stays removed.
    """
    names = resolve(config)
    declared = CRITERIA.entry(names.criterion).declared
    asked = request(dense, config, dtype)
    wanted, spent_on = replace(asked, cumulative=declared.get("cumulative", False)), scores
    if before is not None:
        before.check_fits(dense)
        wanted = replace(wanted, shape=remaining_shape(before, wanted.shape))
        scores, spent_on = rank_removed_last(before, scores), remaining_scores(before, scores)
        if ALLOCATORS.entry(names.allocator).declared["runs_model"]:
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
    hidden: tuple[int, ...] | None = None
    if "hidden" in config.units:
        total = sum((by_kind["hidden"] for by_kind in scores[1:]), scores[0]["hidden"])
        hidden = tuple(best_units(total, granted.hidden))
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
        requested=Size(
            params=wanted.limit,
            non_embedding_params=wanted.limit - dense.embedding_params,
            bytes=wanted.limit * BYTES[dtype],
        ),
        reached=Size.of(granted.sizes(dtype)),
        latency=latency,
        warnings=tuple(warnings_for(dense, wanted, config.target, granted, alike)),
        layers=tuple(
            _layer_plan(index, dense, granted, scores[index])
            for index in range(granted.layers)
            if granted.ffn[index] or granted.kv_heads[index]
        ),
        hidden=hidden,
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
    that were found, and where it differs from the table, the table is corrected and spent again.
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
        if kind not in wanted.kinds or layer not in wanted.free_range
    )
    limit = target.latency_ms or whole * (target.latency_ratio or 1.0)
    if not stays < limit <= whole:
        raise BadInput(
            f"prune.target allows {limit:.1f} ms of a forward pass, but the model takes {whole:.1f} here, of "
            f"which what prune.units leaves alone takes {stays:.1f}; give a time between, or add units"
        )
    return limit, Costs(limit - stays, lambda kind, _, count: table.of(kind, count))


def _layer_plan(index: int, dense: Shape, granted: Shape, scores: dict[Unit, Tensor]) -> LayerPlan:
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
    removed = any(
        not ffn and not kv_heads for ffn, kv_heads in zip(granted.ffn, granted.kv_heads, strict=True)
    )
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
        index=index if removed else None,
        ffn=kept["ffn"],
        kv_groups=kept["kv_groups"],
        heads=heads,
        experts=experts,
        expert_ffn=expert_ffn,
    )


def remaining_shape(before: Plan, dense: Shape) -> Shape:
    """The dense shape with the widths that an earlier plan left: 0 where a layer or sublayer is removed."""
    stays = before.by_source()
    return dense.with_widths(
        stays.get(layer, REMOVED_LAYER).widths(dense.widths(layer)) for layer in range(dense.layers)
    )


def remaining_scores(before: Plan, scores: Scores) -> LayerScores:
    """The scores [units, features per unit] of the units that are there; those of layers stay as they are."""
    return [
        {
            kind: one if (stay := _stay(before, layer, kind)) is None else one[stay]
            for kind, one in each.items()
        }
        for layer, each in enumerate(scores)
    ]


def rank_removed_last(before: Plan, scores: Scores) -> LayerScores:
    """The scores with minus infinity for removed units, so that none comes before one that is there."""

    def ranked(layer: int, kind: Unit, values: Tensor) -> Tensor:
        if (stay := _stay(before, layer, kind)) is None:
            return values
        found = values.new_full(values.shape, -math.inf)
        found[stay] = values[stay]
        return found

    return [
        {kind: ranked(layer, kind, values) for kind, values in by_kind.items()}
        for layer, by_kind in enumerate(scores)
    ]


def _stay(before: Plan, layer: int, kind: Unit) -> list[int] | None:
    """The units that an earlier plan kept; None where they are no units inside a layer."""
    kept = before.by_source().get(layer, REMOVED_LAYER).kept()
    return list(kept[kind]) if kind in kept else None


def regrow_units(plan: Plan, scores: LayerScores, growth: LayerScores, share: float) -> Plan:
    """The plan with other units of the same number.

    `scores` and `growth` are float32 [units, features per unit] for each layer and kind of the plan.
    """
    stays = plan.by_source()
    layers = [_regrow_layer(stays[source], scores[source], growth[source], share) for source in sorted(stays)]
    return plan.model_copy(update={"layers": tuple(layers)})


def _regrow_layer(
    kept: LayerPlan, scores: dict[Unit, Tensor], growth: dict[Unit, Tensor], share: float
) -> LayerPlan:
    changed: dict[str, tuple[int, ...]] = {}
    for kind in scores:
        worth, gains = scores[kind].mean(dim=1).tolist(), growth[kind].mean(dim=1).tolist()
        # Each KV group keeps as many query heads as the others.
        size = len(worth) // (len(kept.kv_groups) if kind == "heads" else 1)
        units: list[int] = []
        for first in range(0, len(worth), size):
            block = range(first, first + size)
            units += _exchanged(
                [unit for unit in kept.kept()[kind] if unit in block], block, worth, gains, share
            )
        changed[kind] = tuple(units)
    return kept.model_copy(update=changed)


def _exchanged(
    kept: list[int], block: range, worth: list[float], gains: list[float], share: float
) -> list[int]:
    """As many units of a block as `kept`, ascending; of equal ones the lower stays and comes back first."""
    # Less than a whole unit's rounding error, which a cosine leaves.
    count = min(math.ceil(share * len(kept) - 1e-9), len(kept) - 1)
    stay = sorted(kept, key=lambda unit: (-worth[unit], unit))[: len(kept) - count]
    away = sorted(set(block) - set(stay), key=lambda unit: (-gains[unit], unit))
    return sorted([*stay, *away[:count]])
