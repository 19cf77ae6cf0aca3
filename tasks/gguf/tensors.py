"""The tensors of a GGUF file out of a model's: llama.cpp's names, and what it keeps otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.hyperparameters import file_widths
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.families.family import Axes, Family
from resprout.tasks.models.shape import Model, Shape, Widths

if TYPE_CHECKING:
    from gguf import TensorNameMap
    from torch import Tensor

ENDINGS = (".weight", ".bias")
FUSED = "gate_up_proj"
"""Part of the name of gate and up in one tensor."""


def tensors(model: Model, shape: Shape, names: TensorNameMap) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each tensor of the file; those of a layer are there until the next one's.

    Values are views where llama.cpp keeps them alike. Gemma's norms have 1 added (llama.cpp multiplies by
    what it reads), Conv1D weights are transposed, rotary channels interleaved, fused experts taken apart.
    """
    family = shape.family
    for name, axes in family.ends(shape.config).items():
        value = model.get_parameter(name).detach()
        yield _named(name, names), _changed(value, name, axes, family, shape, shape.widths(0))
    for layer in anatomy(model).layers:
        with layer.loaded():
            yield from _of_layer(layer, names)
        yield from _fillers(layer.index, shape)


def _of_layer(layer: Layer, names: TensorNameMap) -> Iterator[tuple[str, Tensor]]:
    family, shape, widths = layer.family, layer.shape, layer.widths
    prefix, weights = f"{family.layer_prefix}{layer.index}.", layer.tensors
    for own, axes in shape.layer_tensors(widths).items():
        value = _changed(weights[own], own, axes, family, shape, widths)
        if "experts" in axes and FUSED in own:
            for part, half in zip(("gate_proj", "up_proj"), value.chunk(2, dim=1), strict=True):
                yield _named(prefix + own.replace(FUSED, part), names), half
        else:
            yield _named(prefix + own, names), value


def _fillers(layer: int, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Tensors of zeros, which add nothing, for the sublayer that `file_widths` adds to a layer."""
    own, here = file_widths(shape, layer), shape.widths(layer)
    block, hidden = f"blk.{layer}", shape.hidden
    if own.ffn > here.ffn:
        yield f"{block}.ffn_norm.weight", torch.ones(hidden)
        for part in ("gate", "up"):
            yield f"{block}.ffn_{part}.weight", torch.zeros(own.ffn, hidden)
        yield f"{block}.ffn_down.weight", torch.zeros(hidden, own.ffn)
    if own.kv_heads > here.kv_heads:
        yield f"{block}.attn_norm.weight", torch.ones(hidden)
        for part in ("q", "k", "v"):
            yield f"{block}.attn_{part}.weight", torch.zeros(shape.head_dim, hidden)
        yield f"{block}.attn_output.weight", torch.zeros(hidden, shape.head_dim)


def _named(name: str, names: TensorNameMap) -> str:
    found = names.get_name(name, try_suffixes=ENDINGS)
    if found is None:
        raise BadInput(f"llama.cpp has no tensor for {name} in this family; export hf instead")
    # Fused experts are parameters without an ending of their own.
    return found if name.endswith(ENDINGS) else f"{found}.weight"


def _changed(value: Tensor, name: str, axes: Axes, family: Family, shape: Shape, widths: Widths) -> Tensor:
    if family.norm_offset and len(axes) == 1 and name.endswith("norm.weight"):
        return value.float() + family.norm_offset
    if "qkv_by_head" in axes:
        return _by_part(value, shape.head_dim)
    if family.rotary_pairs and axes[0] in ("query", "key"):
        return _interleaved(value, shape.head_dim)
    if family.transposed and len(axes) == 2 and not name.startswith(f"{family.decoder}."):
        return value.T
    return value


def _interleaved(value: Tensor, head_dim: int) -> Tensor:
    """Rows of each head in the order 0, half, 1, half + 1, ...: pairs that turn together stand together."""
    heads = value.shape[0] // head_dim
    return value.reshape(heads, 2, head_dim // 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _by_part(value: Tensor, head_dim: int) -> Tensor:
    """All heads' queries, then all their keys, then all their values, out of query, key, value by head."""
    heads = value.shape[0] // (3 * head_dim)
    by_head = value.reshape(heads, 3, head_dim, *value.shape[1:])
    return torch.cat([by_head[:, part].reshape(-1, *value.shape[1:]) for part in range(3)])
