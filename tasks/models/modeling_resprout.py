"""Decoder layers of different widths, each built by transformers' stock class from what is said of it.

This file needs Python, torch and transformers alone. resprout computes with it, and its format `hf_code`
copies it beside the weights of a model, where transformers runs it with trust_remote_code=True. It opens no
file and no connection.

`resprout_layers` in config.json then says for each layer how it differs from the stock layer of `config`:

    config       keys of the layer's own config: its widths
    tensors      dimensions of tensors that no key gives (attention of GPT-2 with fewer heads, say)
    counts       attributes of modules that stock classes take from the whole model's config: numbers of heads
    missing      modules of a sublayer that was removed, and what stands there: attention, ffn or norm
    rotation     of each sublayer its norm and its module, where the residual stream is rotated between them
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

LAYERS_KEY = "resprout_layers"
"""Key of config.json that holds `path`, the list of layers in the model, and `layers`, one entry each."""
CUT = "_resprout_cut"
"""Attribute that marks a class as one of `cut_class`."""


def __getattr__(name: str) -> Any:
    """The class of transformers of this name, its layers as wide as `resprout_layers` of config.json says."""
    stock = getattr(transformers, name, None)
    if name.startswith("_") or not isinstance(stock, type):
        raise AttributeError(f"transformers has no class {name}")
    return _cut(stock)


@functools.cache
def _cut(stock: type) -> Any:
    # save_pretrained copies the file of the module that a class names.
    cut = cut_class(stock, lambda config: getattr(config, LAYERS_KEY, None), __name__)

    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As the stock class, but weights that are missing are an error, not random numbers."""
        model, found = super(cut, cls).from_pretrained(*args, output_loading_info=True, **kwargs)
        if found["missing_keys"]:
            raise ValueError(
                f"the weights lack {', '.join(sorted(found['missing_keys'])[:3])}; nothing is loaded"
            )
        return (model, found) if output_loading_info else model

    whole: Any = from_pretrained
    cut.from_pretrained = classmethod(whole)
    # The names in files are the stock class's, so transformers renames weights as for that.
    cut.is_custom_code = classmethod(lambda cls: False)
    return cut


def cut_class(stock: Any, layers: Callable[[Any], Mapping[str, Any] | None], module: str) -> Any:
    """A class of the stock class's name that builds each layer by its entry; `layers`: of a config."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        given = layers(config)
        if given is not None:
            built = self.get_submodule(given["path"])
            for index, entry in enumerate(given["layers"]):
                built[index] = build_layer(type(built[index]), config, entry, index)

    return type(stock.__name__, (stock,), {"__init__": build, "__module__": module, CUT: True})


def build_layer(kind: Any, config: Any, entry: Mapping[str, Any], index: int) -> Any:
    """A decoder layer of class `kind` as its entry says, its weights not yet set."""
    own = copy.deepcopy(config)
    for key, value in entry["config"].items():
        setattr(own, key, value)
    rotation = entry.get("rotation")
    layer = (rotated_class(kind, rotation) if rotation else kind)(own, layer_idx=index)
    for name, dims in entry.get("tensors", {}).items():
        _resize(layer, name, tuple(dims))
    for name, count in entry.get("counts", {}).items():
        owner, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(owner), attribute, count)
    for name, what in entry.get("missing", {}).items():
        setattr(layer, name, stand_in(what))
    return layer.eval()


def _resize(layer: Any, name: str, dims: tuple[int, ...]) -> None:
    """Give a parameter of the layer these dimensions, its module those of its inputs and outputs."""
    owner, _, own = name.rpartition(".")
    module = layer.get_submodule(owner)
    if module.get_parameter(own).shape == dims:
        return
    module.register_parameter(own, nn.Parameter(module.get_parameter(own).new_empty(dims)))
    if len(dims) == 2:
        # transformers' Conv1D, whose sizes are nx and nf, holds its weight [inputs, outputs].
        inputs, outputs = dims if hasattr(module, "nf") else dims[::-1]
        sizes = {"in_features": inputs, "out_features": outputs, "nx": inputs, "nf": outputs}
        for attribute in sizes.keys() & vars(module).keys():
            setattr(module, attribute, sizes[attribute])


class NoAttention(nn.Module):
    """Stands where attention was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoFFN(nn.Module):
    """Stands where an FFN was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def stand_in(what: str) -> nn.Module:
    """The module in place of an attention, ffn or norm that is missing."""
    made: nn.Module = {"attention": NoAttention, "ffn": NoFFN, "norm": nn.Identity}[what]()
    return made


def first_output(output: Any) -> Tensor:
    """The hidden states among what a layer or sublayer returns: it alone, or the first of a tuple."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


class Sublayers:
    """Attention and FFN of a layer whose norms stand in front of them, without what they are added to.

    Args:
        places: for each of the two the names of its norm and of its module, from the layer on.
    """

    def __init__(self, places: Mapping[str, Sequence[str]]) -> None:
        self._attention, self._ffn = places["attention"], places["ffn"]

    def attention(self, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The output of attention, which is added to the stream `hidden`."""
        norm, module = map(layer.get_submodule, self._attention)
        return first_output(module(hidden_states=norm(hidden), **arguments))

    def ffn(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The output of the FFN, which is added to the stream `hidden`."""
        norm, module = map(layer.get_submodule, self._ffn)
        return first_output(module(norm(hidden)))


class RotatedLayer(nn.Module):
    """Goes in front of a stock decoder layer among the bases of a class that `rotated_class` makes."""

    rotation: ClassVar[Mapping[str, Sequence[str]]]

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.attention_turn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.ffn_turn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.sublayers = Sublayers(self.rotation)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """As the stock layer, each sublayer's input rotated before its output is added."""
        attention = self.sublayers.attention(self, hidden_states, arguments)
        middle = self.attention_turn(hidden_states) + attention
        rotated: Tensor = self.ffn_turn(middle) + self.sublayers.ffn(self, middle)
        return rotated


def rotated_class(stock: type[nn.Module], rotation: Mapping[str, Sequence[str]]) -> type[nn.Module]:
    """A class of the stock layer's name that rotates its residual stream."""
    if issubclass(stock, RotatedLayer):
        return stock
    own = {"rotation": rotation, "__module__": stock.__module__}
    return type(stock.__name__, (RotatedLayer, stock), own)
