"""A plan carried out: tensors cut, the removed units made good for, the config brought in line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.configs.stages import Unit
from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy, cut
from resprout.tasks.models.depth import LAYER_TYPES
from resprout.tasks.models.layout import build_layer, write_shape
from resprout.tasks.models.size import Shape, shape_of
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import Repair
from resprout.tasks.prune.plan import LayerPlan, Plan
from resprout.tasks.prune.registry import REPAIRS
from resprout.tasks.prune.statistics import Statistic
from resprout.tasks.prune.target import with_biases

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Take = Callable[[int, Mapping[str, Tensor]], None]

READ: tuple[Unit, ...] = ("ffn", "kv_groups", "heads")
"""Units whose features one module reads, so that a repair can change that module."""


def apply(
    model: PreTrainedModel,
    plan: Plan,
    input_ids: Tensor | None = None,
    ridge: float = 0.01,
    progress: Progress = silent,
    take: Take | None = None,
) -> None:
    """Cut `model` in place as `plan` says, with the plan's repair, and update its config.

    `input_ids` int64 [samples, tokens] are needed by repairs that look at data; the model is then walked once
    and each layer is cut as soon as its statistics are there. `take`, where given, gets each cut layer's
    number and tensors, which are then not kept. A plan for another model raises BadInput.
    """
    dense = shape_of(model.config.to_dict())
    plan.check_fits(dense)
    parts = anatomy(model)
    repair = REPAIRS.get(plan.repair)(**plan.repair_settings)
    pruned = pruned_shape(plan, dense)
    place = {plan.source(layer): layer for layer in range(pruned.layers)}
    config = copy.deepcopy(model.config)
    # A layer's attention is built by its new place, so its kind must already stand there.
    _cut_types(config, pruned)
    for key in (dense.family.ffn_bias_key, dense.family.attention_bias_key):
        if key and pruned.config.get(key):
            setattr(config, key, True)
    built: dict[int, Any] = {}

    def cut_layer(layer: Layer, source: int, statistics: dict[Unit, Statistic]) -> None:
        if source in place:
            index = place[source]
            tensors = _cut_tensors(layer, plan.layers[index], plan.units, repair, statistics, ridge)
            built[index] = _layer(type(layer.module), config, pruned, index, tensors)
            if take is not None:
                take(index, dict(built[index].named_parameters()))
                built[index].to("meta")
        progress(source + 1, len(parts.layers), "layers cut")

    if repair.statistic(1) is None:
        for source, layer in enumerate(parts.layers):
            with layer.present():
                cut_layer(layer, source, {})
    else:
        if input_ids is None:
            raise TypeError(f"repair '{plan.repair}' needs calibration tokens")
        for step in walk(model, input_ids):
            statistics: dict[Unit, Statistic] = {}
            with ExitStack() as watching:
                for kind in (kind for kind in plan.units if kind in READ):
                    statistic = repair.statistic(step.layer.units(kind).weight.shape[1])
                    if statistic is not None:
                        statistics[kind] = statistic
                        watching.enter_context(watch(step.layer.reader(kind), statistic.update))
                for _ in step.run():
                    pass
            cut_layer(step.layer, step.index, statistics)
    setattr(parts.decoder, parts.family.layers, nn.ModuleList(built[index] for index in range(pruned.layers)))
    for key in (dense.family.ffn_bias_key, dense.family.attention_bias_key):
        if key:
            setattr(model.config, key, getattr(config, key))
    _cut_types(model.config, pruned)
    write_shape(model.config, pruned)


def pruned_shape(plan: Plan, dense: Shape) -> Shape:
    """The shape that `apply` gives a model of shape `dense`."""
    return plan.shape(with_biases(dense, plan.units) if plan.repair == "bias" else dense)


def _cut_tensors(
    layer: Layer,
    kept: LayerPlan,
    kinds: tuple[Unit, ...],
    repair: Repair,
    statistics: Mapping[Unit, Statistic],
    ridge: float,
) -> dict[str, Tensor]:
    """The layer's tensors after the cut, the readers repaired."""
    stay = {kind: units for kind, units in kept.kept().items() if units}
    parts = {kind: layer.part(kind) for kind in stay}
    tensors = cut(layer.tensors, parts, stay)
    for kind in (kind for kind in kinds if kind in READ and kind in stay):
        units = layer.units(kind)
        reader, transposed = units.part.reader, units.part.transposed
        repaired = repair.repair(units, units.part.features(stay[kind]), statistics.get(kind), ridge)
        tensors[f"{reader}.weight"] = repaired.weight.T if transposed else repaired.weight
        if repaired.bias is not None:
            tensors[f"{reader}.bias"] = repaired.bias
    return tensors


def _layer(kind: Any, config: Any, shape: Shape, index: int, tensors: Mapping[str, Tensor]) -> Any:
    """A stock layer with the widths of layer `index` that holds these tensors, zeros where it has more."""
    example = next(iter(tensors.values()))
    with torch.device("meta"):
        layer = build_layer(kind, config, shape, index)
    state = {}
    for name, axes in shape.layer_tensors(shape.widths(index)).items():
        dims = shape.dims(axes, index)
        # Stock configs have one switch for all biases of a block: where one is added, the others are zero.
        state[name] = tensors[name] if name in tensors else example.new_zeros(dims)
    layer.load_state_dict({name: one.contiguous() for name, one in state.items()}, assign=True)
    return layer.requires_grad_(False)


def _cut_types(config: Any, pruned: Shape) -> None:
    if getattr(config, LAYER_TYPES, None) is not None:
        setattr(config, LAYER_TYPES, list(pruned.config[LAYER_TYPES]))
