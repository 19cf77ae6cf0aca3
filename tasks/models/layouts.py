"""Models whose layers have widths or bases of their own: what config.json says, and stock layers built to it.

Stock classes build every layer alike. Where layers differ, config.json keeps the widths of the uncut model
(so that it stays valid) and adds `resprout_layout`: for each layer its FFN channels, key-value heads, query
heads and experts, 0 where a sublayer is missing; and `turned` where the sublayers are rotated. A stock class
that loads such a folder stops at the shapes (where sublayers are missing or rotated the FFN's width in
config.json is one that no layer has, so that it does); `load_model` takes the stock class with each such
layer built by its own constructor from a config with the layer's widths. Where that config has no head_dim, a
layer is built with all heads and its attention cut.

Rotated layers (SliceGPT, arXiv 2401.15024, sec. 3.3): where each sublayer reads and writes the residual
stream in a basis of its own, the stream must be brought from the basis that a sublayer read to the one that
it writes: x -> T_a x + attention(norm(x)) and y -> T_f y + ffn(norm(y)), T_a and T_f [hidden, hidden]. No
stock class has these; a layer here is the stock one with both as modules `attention_turn` and `ffn_turn` and
a forward that uses them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.families.family import Config, Family, Tensors, is_norm
from resprout.tasks.models.shape import ROTATED_KEY, Model, Shape, Sublayer, Widths, shape_of

CUT = "_resprout_cut"
"""Attribute that marks a class as one of `cut_class`."""


def first_output(output: Any) -> Tensor:
    """The hidden states among what a layer or sublayer returns: it alone, or the first of a tuple."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


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
        **({ROTATED_KEY: True} if shape.rotated else {}),
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
        if 0 in (*shape.ffn, *shape.kv_heads) or shape.rotated:
            # Stock code would fill a missing sublayer at random, or leave rotations out. No layer is as wide
            # as this, so it stops.
            setattr(config, keys.ffn, max(shape.ffn) + 1)


def cut_class(stock: type[Model]) -> type[Model]:
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
    layer = (rotated_class(kind, family) if shape.rotated else kind)(own, layer_idx=index)
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
def without_sublayer(layer: Any, shape: Shape, sublayer: Sublayer) -> Iterator[None]:
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
    """Modules in place of a missing sublayer, by names from the layer on: zeros, idle norms."""
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


class Sublayers:
    """Attention and FFN of a layer whose norms stand in front of them, without what they are added to."""

    def __init__(self, family: Family, config: Config) -> None:
        self._attention, self._ffn = family.attention_zeros[0], family.ffn_zeros[0]
        self._before = [_norm(family.attention(config)), _norm(family.ffn(config))]

    def attention(self, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The output of attention, which is added to the stream `hidden`."""
        read = layer.get_submodule(self._before[0])(hidden)
        return first_output(layer.get_submodule(self._attention)(hidden_states=read, **arguments))

    def ffn(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The output of the FFN, which is added to the stream `hidden`."""
        read = layer.get_submodule(self._before[1])(hidden)
        return first_output(layer.get_submodule(self._ffn)(read))


class RotatedLayer(nn.Module):
    """Goes in front of a stock decoder layer among the bases of a class that `rotated_class` makes."""

    family: ClassVar[Family]

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        size = getattr(config, self.family.keys.hidden)
        self.attention_turn = nn.Linear(size, size, bias=False)
        self.ffn_turn = nn.Linear(size, size, bias=False)
        self.sublayers = Sublayers(self.family, config.to_dict())

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """As the stock layer, each sublayer's input rotated before its output is added."""
        attention = self.sublayers.attention(self, hidden_states, arguments)
        middle = self.attention_turn(hidden_states) + attention
        rotated: Tensor = self.ffn_turn(middle) + self.sublayers.ffn(self, middle)
        return rotated


def rotated_class(stock: type[nn.Module], family: Family) -> type[nn.Module]:
    """A class of the stock layer's name that rotates its residual stream."""
    if issubclass(stock, RotatedLayer):
        return stock
    own = {"family": family, "__module__": stock.__module__}
    return type(stock.__name__, (RotatedLayer, stock), own)


def _norm(tensors: Tensors) -> str:
    """The one norm over the hidden channels among these tensors."""
    (name,) = (one for one in tensors if is_norm(one, tensors))
    return name.removesuffix(".weight")
