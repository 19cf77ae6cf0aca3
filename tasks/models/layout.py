"""Models whose layers have widths of their own: what config.json says, and stock layers built to it.

Stock classes build every layer alike. Where layers differ, config.json keeps the widths of the uncut model
(so that it stays valid) and adds `resprout_layout`: for each layer its FFN channels, key-value heads, query
heads and experts, 0 where a sublayer is gone; and `turned` where sublayers have bases of their own
(turned.py). A stock class that loads such a folder stops at the shapes (where sublayers are gone or turned
the FFN's width in config.json is one that no layer has, so that it does); `load_model` takes the stock class
with each such layer built by its own constructor from a config with the layer's widths. Where that config has
no head_dim, a layer is built with all heads and its attention cut.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.tasks.models.depth import Sublayer
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.families.family import Family
from resprout.tasks.models.size import TURNED_KEY, Shape, Widths, shape_of
from resprout.tasks.models.turned import turned_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CUT = "_resprout_cut"
"""Attribute that marks a class as one of `cut_class`."""


class NoAttention(nn.Module):
    """Stands where attention was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoFFN(nn.Module):
    """Stands where an FFN was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def layout_of(config: Any) -> Shape | None:
    """The shape of a transformers config with a layout, None where all layers are alike."""
    return shape_of(config.to_dict()) if getattr(config, LAYOUT_KEY, None) is not None else None


def to_layout(shape: Shape) -> dict[str, list[int] | bool]:
    """The value of `resprout_layout` in config.json."""
    experts = {"num_experts": list(shape.experts)} if shape.experts else {}
    return {
        "intermediate_size": list(shape.ffn),
        "num_key_value_heads": list(shape.kv_heads),
        "num_attention_heads": list(shape.heads),
        **experts,
        **({TURNED_KEY: True} if shape.turned else {}),
    }


def write_shape(config: Any, shape: Shape) -> None:
    """Bring a transformers config in line with `shape`: by its own keys if they can say it, else a layout."""
    family, keys = shape.family, shape.family.keys
    setattr(config, keys.hidden, shape.hidden)
    setattr(config, keys.layers, shape.layers)
    if shape.stock:
        _set_widths(config, family, shape.widths(0), shape.head_dim)
        if hasattr(config, LAYOUT_KEY):
            delattr(config, LAYOUT_KEY)
    else:
        setattr(config, LAYOUT_KEY, to_layout(shape))
        if 0 in (*shape.ffn, *shape.kv_heads) or shape.turned:
            # Stock code would fill a missing sublayer at random, or leave turns out. No layer is as wide as
            # this, so it stops.
            setattr(config, keys.ffn, max(shape.ffn) + 1)


def cut_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class of the stock class's name whose layers are as wide as `config.resprout_layout` says."""
    if getattr(stock, CUT, False):
        return stock

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        shape = layout_of(config)
        if shape is not None:
            layers = getattr(self.get_submodule(shape.family.decoder), shape.family.layers)
            for index in range(shape.layers):
                layers[index] = build_layer(type(layers[index]), config, shape, index)

    return type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__, CUT: True})


def build_layer(kind: Any, config: Any, shape: Shape, index: int) -> Any:
    """A decoder layer of class `kind` with the widths of layer `index`, its weights not yet set."""
    widths, family = shape.widths(index), shape.family
    own = copy.deepcopy(config)
    # A sublayer that will be taken away is built first, and as narrow as it can be.
    experts = max(widths.experts, int(bool(shape.experts)))
    shown = Widths(widths.ffn or 1, widths.kv_heads or 1, widths.heads_per_group or 1, experts)
    _set_widths(own, family, shown, shape.head_dim)
    layer = (turned_class(kind, family) if shape.turned else kind)(own, layer_idx=index)
    if not family.states_heads and widths.kv_heads:
        _narrow_attention(layer, shape, widths)
    present: dict[Sublayer, int] = {"attention": widths.kv_heads, "ffn": widths.ffn}
    for sublayer in (one for one, width in present.items() if not width):
        for name, module in _zeros(shape, sublayer).items():
            setattr(layer, name, module)
    return layer.eval()


def _narrow_attention(layer: Any, shape: Shape, widths: Widths) -> None:
    """Give attention that was built with all heads, which is all its config can say, as many as it has."""
    family = shape.family
    for name, axes in family.attention(shape.config).items():
        owner, _, own = name.rpartition(".")
        module, dims = layer.get_submodule(owner), tuple(shape.axis(axis, widths) for axis in axes)
        if module.get_parameter(own).shape == dims:
            continue
        module.register_parameter(own, nn.Parameter(module.get_parameter(own).new_empty(dims)))
        if len(dims) == 2:
            inputs, outputs = dims if family.transposed else dims[::-1]
            sizes = {"in_features": inputs, "out_features": outputs, "nx": inputs, "nf": outputs}
            for attribute in sizes.keys() & vars(module).keys():
                setattr(module, attribute, sizes[attribute])
    heads = widths.kv_heads * widths.heads_per_group
    for name, what in family.head_counts.items():
        owner, _, own = name.rpartition(".")
        setattr(layer.get_submodule(owner), own, heads if what == "heads" else shape.axis(what, widths))


@contextmanager
def left_out(layer: Any, shape: Shape, sublayer: Sublayer) -> Iterator[None]:
    """Let a layer compute without one sublayer while the context is open."""
    zeros = _zeros(shape, sublayer)
    modules = {name: getattr(layer, name) for name in zeros}
    for name, module in zeros.items():
        setattr(layer, name, module)
    try:
        yield
    finally:
        for name, module in modules.items():
            setattr(layer, name, module)


def _set_widths(config: Any, family: Family, widths: Widths, head_dim: int) -> None:
    keys = family.keys
    setattr(config, keys.ffn, widths.ffn)
    if keys.kv_heads and keys.head_dim:
        setattr(config, keys.kv_heads, widths.kv_heads)
        setattr(config, keys.heads, widths.kv_heads * widths.heads_per_group)
        # Stock configs derive head_dim from hidden size and heads where it is not named.
        setattr(config, keys.head_dim, head_dim)
    for key in keys.experts:
        if hasattr(config, key):
            setattr(config, key, widths.experts)


def _zeros(shape: Shape, sublayer: Sublayer) -> dict[str, nn.Module]:
    """What stands for a sublayer that is gone, by names from the layer on: zeros, idle norms."""
    family = shape.family
    names, zeros, tensors = {
        "attention": (family.attention_zeros, NoAttention, family.attention),
        "ffn": (family.ffn_zeros, NoFFN, family.ffn),
    }[sublayer]
    modules: dict[str, nn.Module] = {
        name: nn.Identity()
        for name in (name.split(".")[0] for name in tensors(shape.config))
        if family.norms(name)
    }
    return modules | {name: zeros() for name in names}
