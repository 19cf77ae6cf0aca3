"""Models whose layers have widths of their own: what config.json says, and the stock class cut to it.

Stock classes build every layer alike. Where layers differ, config.json keeps the widths of the uncut model
(so that it stays valid) and adds `resprout_layout`: for each layer its FFN width and its number of key-value
heads; query heads follow, because whole groups are cut. A stock class that loads such a folder stops at the
shapes; `load_model` builds the stock class with the modules cut before the weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from resprout.tasks.models.anatomy import Part, anatomy
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.size import layout_widths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """FFN channels and key-value heads of each layer."""

    ffn: tuple[int, ...]
    kv_heads: tuple[int, ...]

    def to_config(self) -> dict[str, list[int]]:
        """The value of `resprout_layout` in config.json."""
        return {"intermediate_size": list(self.ffn), "num_key_value_heads": list(self.kv_heads)}


def layout_of(config: Any) -> Layout | None:
    """The layout in a transformers config, None where all layers are alike; a broken one raises BadInput."""
    data = getattr(config, LAYOUT_KEY, None)
    if data is None:
        return None
    return Layout(*layout_widths(data, config.num_hidden_layers))


def cut_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class of the stock class's name whose layers are as wide as `config.resprout_layout` says."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        layout = layout_of(config)
        if layout is not None:
            for layer, width, kv_heads in zip(anatomy(self).layers, layout.ffn, layout.kv_heads, strict=True):
                _resize(layer.ffn, width)
                _resize(layer.kv_groups, kv_heads)
                layer.note_widths()

    return type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__})


def _resize(part: Part, units: int) -> None:
    reader = part.reader.linear
    for slot, rows in part.writers:
        slot.put(_empty_like(slot.linear, units * rows, slot.linear.in_features))
    part.reader.put(_empty_like(reader, reader.out_features, units * part.features_per_unit))


def _empty_like(linear: nn.Linear, rows: int, columns: int) -> nn.Linear:
    weight = linear.weight
    return nn.Linear(columns, rows, bias=linear.bias is not None, device=weight.device, dtype=weight.dtype)
