"""Masking: apply a plan but keep all shapes; columns that read removed units become 0 or shrink.

A unit shows in the residual stream only through the columns that read it (o_proj, down_proj), so with those
at zero the model computes what the cut one does. What makes the unit stays as it is, and it may come back.
masked.json beside such a model lists the columns that must stay zero, since nothing else shows which of its
zeros stand for removed units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resprout.configs.presets import Unit
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.shape import SUBLAYERS, Sublayer, shape_of
from resprout.tasks.prune.interfaces import Model
from resprout.tasks.prune.plan import REMOVED_LAYER, LayerPlan, Plan

MASKED = "masked.json"

Columns = Mapping[str, tuple[int, Sequence[int]] | None]
"""By a parameter's whole name the dimension and the indices along it that are zero; None: all of it is."""


@torch.no_grad()
def mask(model: Model, plan: Plan, keep: float = 0.0) -> Columns:
    """Multiply by `keep` what reads the units that the plan removes, in place.

    Returns what is zero now, by the parameters' whole names; nothing where `keep` is above 0. A plan for
    another model raises BadInput.
    """
    dense = shape_of(model.config.to_dict())
    plan.check_fits(dense)
    stays = plan.by_source()
    masked: dict[str, tuple[int, list[int]] | None] = {}
    for layer in anatomy(model).layers:
        for name, dim, columns in _readers(layer, stays.get(layer.index, REMOVED_LAYER)):
            parameter = layer.module.get_parameter(name)
            whole = f"{layer.family.layer_prefix}{layer.index}.{name}"
            masked[whole] = None if dim is None else (dim, columns.tolist())
            if dim is None:
                parameter.mul_(keep)
                continue
            factors = torch.ones(parameter.shape[dim], dtype=parameter.dtype, device=parameter.device)
            factors[columns] = keep
            parameter.mul_(factors.view([-1 if one == dim else 1 for one in range(parameter.dim())]))
    return {} if keep else masked


def _readers(layer: Layer, kept: LayerPlan) -> Iterator[tuple[str, int | None, Tensor]]:
    """Tensors that read removed units, by names from the layer on: along which dimension and where.

    Biases of a sublayer that goes have no such dimension: they go whole.
    """
    for sublayer in SUBLAYERS:
        weights = _writers(layer, sublayer)
        if not (kept.kv_groups if sublayer == "attention" else kept.ffn):
            for name, dim in weights.items():
                yield name, dim, torch.arange(layer.module.get_parameter(name).shape[dim])
                bias = f"{name.removesuffix('.weight')}.bias"
                if bias in layer.tensors:
                    yield bias, None, torch.empty(0)
            continue
        if sublayer == "ffn" and layer.widths.experts and kept.expert_ffn is None:
            continue
        kind: Unit = "ffn" if sublayer == "ffn" else "kv_groups" if kept.heads is None else "heads"
        part = layer.part(kind)
        removed = sorted(set(range(part.units)) - set(kept.kept()[kind]))
        for one in part.slices if removed else ():
            if weights.get(one.name) == one.dim:
                yield one.name, one.dim, one.index[removed].flatten()


def _writers(layer: Layer, sublayer: Sublayer) -> dict[str, int]:
    """Weights of a sublayer that write to the residual stream, and the dimension along which they read."""
    family, config = layer.family, layer.shape.config
    sublayers = family.attention(config) if sublayer == "attention" else family.ffn(config)
    present = layer.shape.layer_tensors(layer.widths)
    found: dict[str, int] = {}
    for name, axes in sublayers.items():
        reads, writes = (0, 1) if family.transposed else (len(axes) - 1, len(axes) - 2)
        if name in present and len(axes) > 1 and axes[writes] == "hidden":
            found[name] = reads
    return found


def write_masked(columns: Columns, folder: Path) -> None:
    """Write masked.json beside a model."""
    text = json.dumps(columns, sort_keys=True)
    (folder / MASKED).write_text(text + "\n", encoding="utf-8")


def read_masked(folder: Path) -> Columns:
    """The masked columns of the model in `folder`; empty where it is not masked."""
    path = folder / MASKED
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: None if one is None else (int(one[0]), list(one[1])) for name, one in found.items()}
