"""Surgery: a plan carried out on a model. Tensors are cut, readers repaired, the config brought in line.

A hidden channel leaves embeddings, norms, readers, writers and head at once. RMSNorm divides by the root
of the mean square over all channels: with K of H left the mean is over K. The weights of the norms times
sqrt(H / K), and what the norm adds to the mean square times H / K, give back exactly what the norm of
the uncut model gives where the removed channels are zero. (Norms of queries and keys over head_dim share
the config's one epsilon and get it too; beside their mean squares it is nothing.)

A repair reads no data, or each layer's inputs in the uncut model, or those that the cut and repaired
layers before it give. For the last, two streams of hidden states go through the layers side by side: that of
the uncut model, whose readers' outputs are the targets, and that of the pruned one, whose readers' inputs the
repair has to work with. Within a layer attention is repaired first, so that the FFN is repaired on what it
will see. A layer costs one forward for the targets, one for each reader that is repaired, and one to go on;
the targets are held for one layer, as large as the hidden states.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from resprout.configs.presets import Unit
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, Units, anatomy, cut
from resprout.tasks.models.families.family import Tensors, is_norm
from resprout.tasks.models.forward import LayerStep, call_layer, run_layerwise, watch
from resprout.tasks.models.layouts import build_layer, write_shape
from resprout.tasks.models.offload import ActivationOffload
from resprout.tasks.models.shape import Shape, Widths, shape_of
from resprout.tasks.prune.interfaces import (
    FinalRepair,
    Model,
    ModelRepair,
    Repair,
    Repaired,
    SequentialRepair,
)
from resprout.tasks.prune.plan import LayerPlan, Plan
from resprout.tasks.prune.registry import REPAIRS
from resprout.tasks.prune.statistics import Statistic, Targets
from resprout.tasks.prune.target import with_repair

Take = Callable[[int, Mapping[str, Tensor]], None]


def apply(
    model: Model,
    plan: Plan,
    input_ids: Tensor | None = None,
    ridge: float = 0.01,
    progress: Progress = silent,
    take: Take | None = None,
) -> None:
    """Cut `model` in place as `plan` says, with the plan's repair, and update its config.

    `input_ids` int64 [samples, tokens] are needed by repairs that look at data; the model is then run
    layer by layer and each layer is cut as soon as its statistics are there. `take`, where given, gets each
    cut layer's number and tensors, which are then not kept. A plan for another model raises BadInput.
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
    cutter.cut_ends(model)
    cutter.update_config(model.config)
    write_shape(model.config, cutter.pruned)
    if isinstance(repair, FinalRepair):
        repair.finish(model)


def pruned_shape(plan: Plan, dense: Shape) -> Shape:
    """The shape that `apply` gives a model of shape `dense`."""
    return plan.shape(with_repair(dense, plan.units, plan.repair))


class Cutter:
    """Cuts layers and ends of a model; `uncut` is the shape before, with the biases that the repair adds."""

    def __init__(self, plan: Plan, uncut: Shape, config: Any) -> None:
        self.plan, self.uncut = plan, uncut
        self.pruned = plan.shape(uncut)
        self.config = self._prepared(copy.deepcopy(config))
        self.place = {plan.source(layer): layer for layer in range(self.pruned.layers)}
        """By the number of a layer of the uncut model that stays, its number in the pruned one."""

    def kept(self, source: int) -> LayerPlan:
        """The kept units of a layer of the uncut model."""
        return self.plan.layers[self.place[source]]

    def repairable(self, source: int) -> list[Unit]:
        """Units whose reader loses some of its features: of each reader the finest kind, attention first.

        None of a layer that goes.
        """
        if source not in self.place:
            return []
        kept, kinds = self.kept(source), self.plan.units
        attention: Unit = "kv_groups" if kept.heads is None else "heads"
        found: list[Unit] = [attention] if {"kv_groups", "heads"} & set(kinds) and kept.kv_groups else []
        read = "ffn" in kinds and kept.ffn and kept.expert_ffn is None
        return [*found, "ffn"] if read else found

    def layer(self, layer: Layer, kept: LayerPlan, readers: Mapping[str, Tensor]) -> Any:
        """A stock layer with what is `kept` of the uncut one, and `readers` in place of its own tensors."""
        stay = {kind: units for kind, units in kept.kept().items() if units}
        if layer.widths.experts and kept.expert_ffn is None:
            stay.pop("ffn", None)
        tensors = cut(layer.tensors, {kind: layer.part(kind) for kind in stay}, stay) | dict(readers)
        if self.plan.hidden is not None:
            tensors = self._cut_hidden(self.uncut.layer_tensors(layer.widths), tensors)
        index = self.place[layer.index]
        widths: list[Widths] = [self.pruned.widths(one) for one in range(self.pruned.layers)]
        widths[index] = kept.widths(layer.widths)
        shape = self.pruned.with_widths(widths)
        with torch.device("meta"):
            built = build_layer(type(layer.module), self.config, shape, index)
        example = next(iter(tensors.values()))
        # Stock configs have one switch for all biases of a block: where one is added, others are zero.
        state = {
            name: tensors[name] if name in tensors else example.new_zeros(shape.dims(axes, index))
            for name, axes in shape.layer_tensors(shape.widths(index)).items()
        }
        built.load_state_dict({name: one.contiguous() for name, one in state.items()}, assign=True)
        return built.requires_grad_(False)

    def cut_stream(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden] without the removed channels."""
        if self.plan.hidden is None:
            return hidden
        return hidden[..., torch.tensor(self.plan.hidden, device=hidden.device)]

    def cut_ends(self, model: Model) -> None:
        """Cut embeddings, last norm and head of `model` in place."""
        if self.plan.hidden is None:
            return
        axes = self.uncut.family.ends(self.uncut.config)
        tensors = {name: model.get_parameter(name).detach() for name in axes}
        for name, tensor in self._cut_hidden(axes, tensors).items():
            module = model.get_submodule(name.rpartition(".")[0])
            module.register_parameter(name.rpartition(".")[2], nn.Parameter(tensor, requires_grad=False))
            for attribute in ("embedding_dim", "in_features"):
                if hasattr(module, attribute):
                    setattr(module, attribute, self.pruned.hidden)
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = getattr(self.config, self.uncut.family.norm_eps_key)
        head: Any = model.get_output_embeddings()
        if self.uncut.tied:
            head.weight = model.get_input_embeddings().weight
            head.in_features = self.pruned.hidden

    def update_config(self, config: Any) -> None:
        """Give a config of the model what the cutter's own has been given."""
        family = self.uncut.family
        for key in (family.ffn_bias_key, family.attention_bias_key, family.norm_eps_key, "layer_types"):
            if key and hasattr(self.config, key) and hasattr(config, key):
                setattr(config, key, getattr(self.config, key))

    def _prepared(self, config: Any) -> Any:
        """The config that layers are built from, but for each layer's own widths."""
        family = self.uncut.family
        for key in (family.ffn_bias_key, family.attention_bias_key):
            if key and self.uncut.config.get(key):
                setattr(config, key, True)
        types = getattr(config, "layer_types", None)
        if types is not None:
            config.layer_types = [types[self.plan.source(layer)] for layer in range(self.pruned.layers)]
        if self.plan.hidden is not None:
            setattr(config, family.keys.hidden, self.pruned.hidden)
            eps = getattr(config, family.norm_eps_key)
            setattr(config, family.norm_eps_key, eps * self.uncut.hidden / self.pruned.hidden)
        return config

    def _cut_hidden(self, axes: Tensors, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = torch.tensor(self.plan.hidden)
        result = dict(tensors)
        for name in axes.keys() & tensors.keys():
            for dim, axis in enumerate(axes[name]):
                if axis == "hidden":
                    result[name] = result[name].index_select(dim, kept.to(result[name].device))
            if is_norm(name, axes):
                offset = self.uncut.family.norm_offset
                scale = math.sqrt(self.uncut.hidden / self.pruned.hidden)
                whole = (result[name].float() + offset) * scale - offset
                result[name] = whole.to(result[name].dtype)
        return result


def _cut_alone(model: Model, cutter: Cutter, repair: Repair, ridge: float) -> Iterator[Any]:
    """For each layer what stays of it, None where it goes; uses no data."""
    for layer in anatomy(model).layers:
        with layer.loaded():
            yield repaired_layer(cutter, repair, layer, {}, ridge)


def _repaired_apart(
    model: Model, cutter: Cutter, repair: Repair, input_ids: Tensor, ridge: float
) -> Iterator[Any]:
    """For each layer what stays of it, repaired on what it sees in the uncut model; None where it goes."""
    for step in run_layerwise(model, input_ids):
        statistics: dict[Unit, Statistic] = {}
        with ExitStack() as watching:
            for kind in cutter.repairable(step.index):
                statistic = repair.statistic(step.layer.units(kind).weight.shape[1])
                if statistic is not None:
                    statistics[kind] = statistic
                    watching.enter_context(watch(step.layer.reader(kind), statistic.update))
            step.run_all()
        yield repaired_layer(cutter, repair, step.layer, statistics, ridge)


def repaired_layer(
    cutter: Cutter, repair: Repair, layer: Layer, statistics: Mapping[Unit, Statistic], ridge: float
) -> Any:
    """The layer after the cut, its readers repaired; None where the whole layer goes."""
    if layer.index not in cutter.place:
        return None
    kept = cutter.kept(layer.index)
    readers: dict[str, Tensor] = {}
    for kind in cutter.repairable(layer.index):
        units = layer.units(kind)
        features = units.part.features(kept.kept()[kind])
        readers |= _tensors(units, repair.repair(units, features, statistics.get(kind), ridge))
    return cutter.layer(layer, kept, readers)


def repaired_in_order(
    model: Model, cutter: Cutter, repair: SequentialRepair, input_ids: Tensor, ridge: float
) -> Iterator[Any]:
    """For each layer what stays of it, repaired on what the layers before give; None where it goes.

    `input_ids` int64 [samples, tokens]. The model itself is not changed.
    """
    stream = ActivationOffload()
    for step in run_layerwise(model, input_ids):
        if step.index == 0:
            stream = ActivationOffload(step.hidden.limit_bytes)
            for hidden in step.hidden:
                stream.append(cutter.cut_stream(hidden))
        targets = _reader_outputs(step, cutter.repairable(step.index))
        if step.index not in cutter.place:
            yield None
            continue
        module = _repaired_on(step, cutter, repair, stream, targets, ridge)
        for batch, call in enumerate(step.calls):
            with torch.no_grad():
                stream[batch] = call_layer(module, stream[batch], call)
        yield module


def _reader_outputs(step: LayerStep, kinds: list[Unit]) -> dict[Unit, ActivationOffload]:
    """Outputs of each kind's reader in the uncut model, batch by batch [tokens, outputs]; runs the step."""
    seen = {kind: ActivationOffload(step.hidden.limit_bytes) for kind in kinds}
    with ExitStack() as watching:
        for kind in kinds:

            def hook(module: Any, inputs: Any, output: Tensor, kind: Unit = kind) -> None:
                seen[kind].append(output.flatten(0, -2))

            watching.callback(step.layer.reader(kind).register_forward_hook(hook).remove)
        step.run_all()
    return seen


def _repaired_on(
    step: LayerStep,
    cutter: Cutter,
    repair: SequentialRepair,
    stream: ActivationOffload,
    targets: dict[Unit, ActivationOffload],
    ridge: float,
) -> Any:
    """The layer after the cut, its readers solved one after another on the pruned model's `stream`."""
    layer, wanted = step.layer, cutter.kept(step.index)
    readers: dict[str, Tensor] = {}
    for kind in targets:
        module = cutter.layer(layer, _without_cut_of(kind, wanted, layer), readers)
        units = layer.units(kind)
        kept = units.part.features(wanted.kept()[kind])
        statistic = repair.targets(len(kept))
        columns = kept.to(units.weight.device)
        reader = module.get_submodule(units.part.reader)
        for batch, target in enumerate(targets[kind]):

            def see(
                inputs: Tensor,
                target: Tensor = target,
                columns: Tensor = columns,
                statistic: Targets = statistic,
            ) -> None:
                statistic.update(inputs[:, columns], target)

            with watch(reader, see), torch.no_grad():
                call_layer(module, stream[batch], step.calls[batch])
        readers |= _tensors(units, repair.solve(units, kept, statistic, ridge))
    return cutter.layer(layer, wanted, readers)


def _without_cut_of(kind: Unit, wanted: LayerPlan, layer: Layer) -> LayerPlan:
    """The plan up to the reader of `kind`: what is repaired before is cut, its own and later units stay."""
    whole: dict[str, Any] = {"ffn": tuple(range(layer.widths.ffn)), "experts": None, "expert_ffn": None}
    if kind != "ffn":
        whole |= {"kv_groups": tuple(range(layer.widths.kv_heads)), "heads": None}
    return wanted.model_copy(update=whole)


def _tensors(units: Units, repaired: Repaired) -> dict[str, Tensor]:
    """A repaired reader's tensors by name, in the family's layout."""
    weight = repaired.weight.T if units.part.transposed else repaired.weight
    bias = {} if repaired.bias is None else {f"{units.part.reader}.bias": repaired.bias}
    return {f"{units.part.reader}.weight": weight, **bias}


def _needed(input_ids: Tensor | None, plan: Plan) -> Tensor:
    if input_ids is None:
        raise TypeError(f"repair '{plan.repair}' needs calibration tokens")
    return input_ids
