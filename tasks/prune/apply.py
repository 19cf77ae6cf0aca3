"""A plan carried out: tensors cut, the removed units made good for, the config brought in line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resprout.configs.stages import Unit
from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.layout import write_shape
from resprout.tasks.models.size import shape_of
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import ModelRepair, Repair, SequentialRepair
from resprout.tasks.prune.cutting import Cutter
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.registry import REPAIRS
from resprout.tasks.prune.sequential import repair_in_order
from resprout.tasks.prune.statistics import Statistic
from resprout.tasks.prune.target import with_repair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def apply(
    model: PreTrainedModel,
    plan: Plan,
    input_ids: Tensor | None = None,
    ridge: float = 0.01,
    progress: Progress = silent,
) -> None:
    """Cut `model` in place as `plan` says, with the plan's repair, and update its config.

    `input_ids` int64 [samples, tokens] are needed by repairs that look at data; the model is then walked
    and each layer is cut as soon as its statistics are there. A plan for another model raises BadInput.
    """
    dense = shape_of(model.config.to_dict())
    plan.check_fits(dense)
    repair = REPAIRS.get(plan.repair)(**plan.repair_settings)
    if isinstance(repair, ModelRepair):
        repair.prepare(model, _needed(input_ids, plan), progress)
    cutter = Cutter(plan, with_repair(dense, plan.units, plan.repair), model.config)
    if isinstance(repair, SequentialRepair) and repair.inputs == "pruned":
        built = repair_in_order(model, cutter, repair, _needed(input_ids, plan), ridge, progress)
    elif repair.statistic(1) is not None:
        built = _repaired_apart(model, cutter, repair, _needed(input_ids, plan), ridge, progress)
    else:
        built = []
        for source, layer in enumerate(anatomy(model).layers):
            built += _cut(cutter, repair, layer, source, {}, ridge)
            progress(source + 1, dense.layers, "layers cut")
    parts = anatomy(model)
    setattr(parts.decoder, parts.family.layers, nn.ModuleList(built))
    cutter.ends(model)
    cutter.finish(model.config)
    write_shape(model.config, cutter.pruned)


def _repaired_apart(
    model: PreTrainedModel,
    cutter: Cutter,
    repair: Repair,
    input_ids: Tensor,
    ridge: float,
    progress: Progress,
) -> list[Any]:
    """The pruned model's layers, each repaired on what it sees in the uncut model."""
    built: list[Any] = []
    for step in walk(model, input_ids):
        statistics: dict[Unit, Statistic] = {}
        with ExitStack() as watching:
            for kind in cutter.repairable(step.index) if step.index in cutter.place else ():
                statistic = repair.statistic(step.layer.units(kind).weight.shape[1])
                if statistic is not None:
                    statistics[kind] = statistic
                    watching.enter_context(watch(step.layer.reader(kind), statistic.update))
            for _ in step.run():
                pass
        built += _cut(cutter, repair, step.layer, step.index, statistics, ridge)
        progress(step.index + 1, step.total, "layers cut")
    return built


def _cut(
    cutter: Cutter,
    repair: Repair,
    layer: Layer,
    source: int,
    statistics: dict[Unit, Statistic],
    ridge: float,
) -> list[Any]:
    """The layer after the cut, its readers repaired; none where the whole layer goes."""
    if source not in cutter.place:
        return []
    kept = cutter.kept(source)
    readers: dict[str, Tensor] = {}
    for kind in cutter.repairable(source):
        units = layer.units(kind)
        features = units.part.features(kept.kept()[kind])
        repaired = repair.repair(units, features, statistics.get(kind), ridge)
        weight = repaired.weight.T if units.part.transposed else repaired.weight
        readers[f"{units.part.reader}.weight"] = weight
        if repaired.bias is not None:
            readers[f"{units.part.reader}.bias"] = repaired.bias
    return [cutter.layer(layer, source, kept, readers)]


def _needed(input_ids: Tensor | None, plan: Plan) -> Tensor:
    if input_ids is None:
        raise TypeError(f"repair '{plan.repair}' needs calibration tokens")
    return input_ids
