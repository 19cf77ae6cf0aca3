"""Tensors of a model cut as a plan says: layers built anew with fewer units, embeddings, last norm and head.

A hidden channel leaves embeddings, norms, readers, writers and head at once. RMSNorm divides by the root
of the mean square over all channels: with K of H left the mean is over K. The weights of the norms times
sqrt(H / K), and what the norm adds to the mean square times H / K, give back exactly what the norm of
the uncut model gives where the removed channels are zero. (Norms of queries and keys over head_dim share
the config's one epsilon and get it too; beside their mean squares it is nothing.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Layer, cut
from resprout.tasks.models.families.family import Tensors
from resprout.tasks.models.layout import build_layer
from resprout.tasks.models.size import Shape, Widths
from resprout.tasks.prune.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Cutter:
    """Cuts what it is given; `uncut` is the shape before, with the biases that the repair adds."""

    def __init__(self, plan: Plan, uncut: Shape, config: Any) -> None:
        self.plan, self.uncut = plan, uncut
        self.pruned = plan.shape(uncut)
        self.config = self._prepared(copy.deepcopy(config))
        self.place = {plan.source(layer): layer for layer in range(self.pruned.layers)}
        """Where a layer of the uncut model comes to stand, for those that stay."""

    def kept(self, source: int) -> LayerPlan:
        """What stays of a layer of the uncut model."""
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

    def layer(self, layer: Layer, source: int, kept: LayerPlan, readers: Mapping[str, Tensor]) -> Any:
        """A stock layer with what is `kept` of the uncut one, and `readers` in place of its own tensors."""
        stay = {kind: units for kind, units in kept.kept().items() if units}
        if layer.widths.experts and kept.expert_ffn is None:
            stay.pop("ffn", None)
        tensors = cut(layer.tensors, {kind: layer.part(kind) for kind in stay}, stay)
        tensors |= self._without_channels({**tensors, **readers}, layer.widths)
        index = self.place[source]
        shape = _with_widths(self.pruned, index, kept.widths(layer.widths))
        with torch.device("meta"):
            built = build_layer(type(layer.module), self.config, shape, index)
        example = next(iter(tensors.values()))
        state = {}
        for name, axes in shape.layer_tensors(shape.widths(index)).items():
            # Stock configs have one switch for all biases of a block: where one is added, others are
            # zero.
            state[name] = tensors[name] if name in tensors else example.new_zeros(shape.dims(axes, index))
        built.load_state_dict({name: one.contiguous() for name, one in state.items()}, assign=True)
        return built.requires_grad_(False)

    def stream(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden] without the removed channels."""
        if self.plan.hidden is None:
            return hidden
        return hidden[..., torch.tensor(self.plan.hidden, device=hidden.device)]

    def ends(self, model: PreTrainedModel) -> None:
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

    def finish(self, config: Any) -> None:
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

    def _without_channels(self, tensors: dict[str, Tensor], widths: Widths) -> dict[str, Tensor]:
        if self.plan.hidden is None:
            return tensors
        return self._cut_hidden(self.uncut.layer_tensors(widths), tensors)

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


def is_norm(name: str, axes: Tensors) -> bool:
    """Whether a tensor is the weight of a norm over the hidden channels."""
    return axes[name] == ("hidden",) and name.endswith(".weight")


def _with_widths(shape: Shape, index: int, widths: Widths) -> Shape:
    """The shape with other widths in one layer."""

    def changed(counts: tuple[int, ...], count: int) -> tuple[int, ...]:
        return (*counts[:index], count, *counts[index + 1 :])

    return replace(
        shape,
        ffn=changed(shape.ffn, widths.ffn),
        kv_heads=changed(shape.kv_heads, widths.kv_heads),
        heads_per_group=changed(shape.heads_per_group, widths.heads_per_group),
        experts=changed(shape.experts, widths.experts) if shape.experts else (),
    )
