"""A plan carried out: tensors cut, the removed units made good for, the config brought in line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resprout.configs.stages import Unit
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.layout import write_shape
from resprout.tasks.models.size import Shape, shape_of
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import FinalRepair, ModelRepair, Repair, SequentialRepair
from resprout.tasks.prune.cutting import Cutter
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.registry import REPAIRS
from resprout.tasks.prune.sequential import repaired_in_order
from resprout.tasks.prune.statistics import Statistic
from resprout.tasks.prune.target import with_repair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Take = Callable[[int, Mapping[str, Tensor]], None]


def apply(
    model: PreTrainedModel,
    plan: Plan,
    input_ids: Tensor | None = None,
    ridge: float = 0.01,
    progress: Progress = silent,
    take: Take | None = None,
) -> None:
    """Cut `model` in place as `plan` says, with the plan's repair, and update its config.

    `input_ids` int64 [samples, tokens] are needed by repairs that look at data; the model is then walked
    and each layer is cut as soon as its statistics are there. `take`, where given, gets each cut layer's
    number and tensors, which are then not kept. A plan for another model raises BadInput.
    """
    dense = shape_of(model.config.to_dict())
    plan.check_fits(dense)
    repair = REPAIRS.get(plan.repair)(**plan.repair_settings)
    if isinstance(repair, ModelRepair):
        repair.prepare(model, plan, _needed(input_ids, plan), progress)
    cutter = Cutter(plan, with_repair(dense, plan.units, plan.repair), model.config)
    if isinstance(repair, SequentialRepair) and repair.inputs == "pruned":
        layers = repaired_in_order(model, cutter, repair, _needed(input_ids, plan), ridge)
    elif repair.statistic(1) is not None:
        layers = _repaired_apart(model, cutter, repair, _needed(input_ids, plan), ridge)
    else:
        layers = _cut_alone(model, cutter, repair, ridge)
    built: list[Any] = []
    for source, layer in enumerate(layers):
        if layer is not None:
            if take is not None:
                take(len(built), dict(layer.named_parameters()))
                layer.to("meta")
            built.append(layer)
        progress(source + 1, dense.layers, "layers cut")
    parts = anatomy(model)
    setattr(parts.decoder, parts.family.layers, nn.ModuleList(built))
    cutter.ends(model)
    cutter.finish(model.config)
    write_shape(model.config, cutter.pruned)
    if isinstance(repair, FinalRepair):
        repair.finish(model)


def pruned_shape(plan: Plan, dense: Shape) -> Shape:
    """The shape that `apply` gives a model of shape `dense`."""
    return plan.shape(with_repair(dense, plan.units, plan.repair))


def _cut_alone(model: PreTrainedModel, cutter: Cutter, repair: Repair, ridge: float) -> Iterator[Any]:
    """For each layer what stays of it, None where it goes; looks at no data."""
    for source, layer in enumerate(anatomy(model).layers):
        with layer.present():
            yield _cut(cutter, repair, layer, source, {}, ridge)


def _repaired_apart(
    model: PreTrainedModel, cutter: Cutter, repair: Repair, input_ids: Tensor, ridge: float
) -> Iterator[Any]:
    """For each layer what stays of it, repaired on what it sees in the uncut model; None where it goes."""
    for step in walk(model, input_ids):
        statistics: dict[Unit, Statistic] = {}
        with ExitStack() as watching:
            for kind in cutter.repairable(step.index):
                statistic = repair.statistic(step.layer.units(kind).weight.shape[1])
                if statistic is not None:
                    statistics[kind] = statistic
                    watching.enter_context(watch(step.layer.reader(kind), statistic.update))
            for _ in step.run():
                pass
        yield _cut(cutter, repair, step.layer, step.index, statistics, ridge)


def _cut(
    cutter: Cutter,
    repair: Repair,
    layer: Layer,
    source: int,
    statistics: dict[Unit, Statistic],
    ridge: float,
) -> Any:
    """The layer after the cut, its readers repaired; None where the whole layer goes."""
    if source not in cutter.place:
        return None
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
    return cutter.layer(layer, source, kept, readers)


def _needed(input_ids: Tensor | None, plan: Plan) -> Tensor:
    if input_ids is None:
        raise TypeError(f"repair '{plan.repair}' needs calibration tokens")
    return input_ids
