"""Layers whose residual stream is turned from one basis to another (SliceGPT, arXiv 2401.15024, sec. 3.3).

Where each sublayer reads and writes the stream in a basis of its own, what a sublayer is added to must be
brought from the basis that it read to the one that it writes: x -> T_a x + attention(norm(x)) and
y -> T_f y + ffn(norm(y)), T_a and T_f [hidden, hidden]. No stock class has these; a layer here is the stock
one with both as modules `attention_turn` and `ffn_turn` and a forward that uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from resprout.tasks.models.families.family import Config, Family, Tensors


class Sublayers:
    """Attention and FFN of a layer whose norms stand in front of them, without what they are added to."""

    def __init__(self, family: Family, config: Config) -> None:
        self._attention, self._ffn = family.attention_zeros[0], family.ffn_zeros[0]
        self._before = [_norm(family.attention(config)), _norm(family.ffn(config))]

    def attention(self, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """What attention adds to the stream `hidden`."""
        read = layer.get_submodule(self._before[0])(hidden)
        return _first(layer.get_submodule(self._attention)(hidden_states=read, **arguments))

    def ffn(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """What the FFN adds to the stream `hidden`."""
        read = layer.get_submodule(self._before[1])(hidden)
        return _first(layer.get_submodule(self._ffn)(read))


class Turned(nn.Module):
    """Goes in front of a stock decoder layer among the bases of a class that `turned_class` makes."""

    family: ClassVar[Family]

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        size = getattr(config, self.family.keys.hidden)
        self.attention_turn = nn.Linear(size, size, bias=False)
        self.ffn_turn = nn.Linear(size, size, bias=False)
        self.sublayers = Sublayers(self.family, config.to_dict())

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """As the stock layer, each sublayer's input turned before its output is added."""
        attention = self.sublayers.attention(self, hidden_states, arguments)
        middle = self.attention_turn(hidden_states) + attention
        turned: Tensor = self.ffn_turn(middle) + self.sublayers.ffn(self, middle)
        return turned


def turned_class(stock: type[nn.Module], family: Family) -> type[nn.Module]:
    """A class of the stock layer's name that turns its residual stream."""
    if issubclass(stock, Turned):
        return stock
    own = {"family": family, "__module__": stock.__module__}
    return type(stock.__name__, (Turned, stock), own)


def _norm(tensors: Tensors) -> str:
    """The one norm over the hidden channels among these tensors."""
    (name,) = (one for one, axes in tensors.items() if axes == ("hidden",) and "norm" in one)
    return name.removesuffix(".weight")


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
