"""Where a decoder keeps its FFN channels and KV groups; the only module that knows names like `q_proj`.

A unit (an FFN channel, a KV group with its query heads) is a set of features: columns of one *reader*
(`down_proj`, `o_proj`), made by rows of its *writers* (`gate_proj`, `up_proj`; `q_proj`, `k_proj`, `v_proj`).
Methods speak of units, features, readers and writers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from resprout.tasks.models.families import Family, check_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["ffn", "kv_groups"]


@dataclass(frozen=True)
class Slot:
    """A place in the model that holds a linear layer, which may be replaced there."""

    owner: nn.Module
    name: str

    @property
    def linear(self) -> nn.Linear:
        return getattr(self.owner, self.name)

    def put(self, linear: nn.Linear) -> None:
        """Replace the linear layer held here."""
        setattr(self.owner, self.name, linear)


@dataclass(frozen=True)
class Part:
    """One kind of unit in one layer.

    `writers` are (slot, rows per unit); the columns of `reader` are the units' features in order,
    `features_per_unit` for each.
    """

    kind: Kind
    writers: tuple[tuple[Slot, int], ...]
    reader: Slot
    features_per_unit: int

    @property
    def units(self) -> int:
        """How many units this layer has now."""
        return self.reader.linear.in_features // self.features_per_unit

    def features(self, units: Sequence[int]) -> Tensor:
        """Columns of the reader that belong to `units`: int64 [units * features_per_unit]."""
        return expand(units, self.features_per_unit)


@dataclass(frozen=True)
class Layer:
    """One decoder layer: the module and its parts by kind."""

    module: Any
    ffn: Part
    kv_groups: Part

    def part(self, kind: Kind) -> Part:
        """The part that holds units of `kind`."""
        return self.ffn if kind == "ffn" else self.kv_groups

    def note_widths(self) -> None:
        """Bring the modules' own width attributes in line with their tensors."""
        self.module.mlp.intermediate_size = self.ffn.units


@dataclass(frozen=True)
class Anatomy:
    """A decoder: its family, the module that maps ids to hidden states, and its layers in order."""

    family: Family
    decoder: Any
    layers: tuple[Layer, ...]


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The parts of `model`; an unsupported family raises BadInput, which says how to add one."""
    family = check_family({"model_type": model.config.model_type})
    decoder: Any = model.model
    return Anatomy(family, decoder, tuple(_layer(module) for module in decoder.layers))


def expand(units: Sequence[int], size: int) -> Tensor:
    """Indices of all rows of `units` where each unit has `size` rows: int64 [len(units) * size]."""
    first = torch.as_tensor(units, dtype=torch.long).reshape(-1, 1) * size
    return (first + torch.arange(size)).reshape(-1)


def _layer(module: Any) -> Layer:
    mlp, attention = module.mlp, module.self_attn
    head_dim, heads = attention.head_dim, attention.num_key_value_groups
    ffn = Part("ffn", ((Slot(mlp, "gate_proj"), 1), (Slot(mlp, "up_proj"), 1)), Slot(mlp, "down_proj"), 1)
    groups = Part(
        "kv_groups",
        (
            (Slot(attention, "q_proj"), heads * head_dim),
            (Slot(attention, "k_proj"), head_dim),
            (Slot(attention, "v_proj"), head_dim),
        ),
        Slot(attention, "o_proj"),
        heads * head_dim,
    )
    return Layer(module, ffn, groups)
