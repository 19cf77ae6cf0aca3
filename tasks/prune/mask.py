"""A plan carried out on a model that keeps its shape: what reads the removed units is zero, or shrinks.

A unit shows in the residual stream only through the columns that read it (o_proj, down_proj), so with those
at zero the model computes what the cut one does. What makes the unit stays as it is, and it may come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.depth import SUBLAYERS, Sublayer
from resprout.tasks.models.masked import Columns
from resprout.tasks.models.size import shape_of
from resprout.tasks.prune.gone import NOTHING
from resprout.tasks.prune.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def mask(model: PreTrainedModel, plan: Plan, keep: float = 0.0) -> Columns:
    """Multiply by `keep` what reads the units that the plan removes, in place.

    Returns the inputs of linear modules that are zero now, by the modules' whole names; none where `keep` is
    above 0. A plan for another model raises BadInput.
    """
    dense = shape_of(model.config.to_dict())
    plan.check_fits(dense)
    stays = plan.by_source()
    masked: dict[str, list[int]] = {}
    for layer in anatomy(model).layers:
        kept = stays.get(layer.index, NOTHING)
        for name, columns in _readers(layer, kept):
            module, _, leaf = name.rpartition(".")
            weight, dim = layer.module.get_parameter(name), 0 if layer.family.transposed else -1
            if columns is None:
                weight.mul_(keep)
                columns = list(range(weight.shape[dim]))
            else:
                factors = torch.ones(weight.shape[dim], dtype=weight.dtype, device=weight.device)
                factors[columns] = keep
                weight.mul_(factors.unsqueeze(1) if dim == 0 else factors)
            if leaf == "weight" and weight.dim() == 2 and columns:
                masked[f"{layer.family.layer_prefix}{layer.index}.{module}"] = columns
    return {} if keep else masked


def _readers(layer: Layer, kept: LayerPlan) -> Iterator[tuple[str, list[int] | None]]:
    """Tensors that read removed units, by names from the layer on, and which columns; None: all of them."""
    for sublayer in SUBLAYERS:
        if not (kept.kv_groups if sublayer == "attention" else kept.ffn):
            yield from ((name, None) for name in _writers(layer, sublayer))
            continue
        kind: Unit = "ffn" if sublayer == "ffn" else "kv_groups" if kept.heads is None else "heads"
        part = layer.part(kind)
        gone = sorted(set(range(part.units)) - set(kept.kept()[kind]))
        if gone and part.reader:
            yield f"{part.reader}.weight", part.features(gone).tolist()


def _writers(layer: Layer, sublayer: Sublayer) -> Iterator[str]:
    """Weights and biases of a sublayer's modules that write to the residual stream."""
    family, config = layer.family, layer.shape.config
    axes = family.attention(config) if sublayer == "attention" else family.ffn(config)
    present = layer.shape.layer_tensors(layer.widths)
    out = -1 if family.transposed else -2
    for name, one in axes.items():
        if name in present and len(one) > 1 and one[out] == "hidden":
            bias = f"{name.removesuffix('.weight')}.bias"
            yield from (name, bias) if bias in axes else (name,)
