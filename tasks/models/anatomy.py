"""Anatomy of a decoder: its units, and the slices of tensors that leave with each, from named axes.

A unit of a layer (an FFN channel, of one expert where there are experts, a KV group with its query heads, a
query head, an expert, a hidden channel as far as the layer holds it) is a set of slices of the layer's
tensors. Its *features* are the columns of one *reader* (`down_proj`, `o_proj`) that it makes. Methods speak
of units, slices, features and readers only; tasks/models/families hold what a family calls its tensors and
how it fuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resprout.configs.errors import BadInput
from resprout.configs.presets import DEPTH, Unit
from resprout.tasks.models.families.family import Axes, Family
from resprout.tasks.models.shape import SUBLAYERS, Model, Shape, Widths, shape_of


@dataclass(frozen=True)
class Slices:
    """Slices of one tensor that leave with each unit: `index` int64 [units, slices per unit] along `dim`.

    Of channels inside experts it is along `outer`, the experts' dimension, and `dim`, which comes after it,
    joined to one.
    """

    name: str
    dim: int
    index: Tensor
    outer: int | None = None

    def along(self, tensor: Tensor) -> Tensor:
        """The tensor with what the index counts in front: [positions, ...]."""
        if self.outer is None:
            return tensor.movedim(self.dim, 0)
        return tensor.movedim((self.outer, self.dim), (0, 1)).flatten(0, 1)

    def of(self, tensor: Tensor) -> Tensor:
        """The values that leave with each unit: [units, values]."""
        return self.along(tensor)[self.index.to(tensor.device)].reshape(len(self.index), -1)

    def sums(self, tensor: Tensor) -> Tensor:
        """The sum of the values that leave with each unit: [units]; gathers no values."""
        others = [dim for dim in range(tensor.dim()) if dim not in (self.dim, self.outer)]
        along = tensor.sum(dim=others) if others else tensor
        return along.flatten()[self.index.to(tensor.device)].sum(dim=1)


@dataclass(frozen=True)
class Part:
    """The units of one kind in one layer, by names from the layer on.

    `reader` is the module that reads their features, None where no one module does. Units lie in
    `blocks` blocks of equal size, of which each keeps the same number.
    """

    kind: Unit
    units: int
    slices: tuple[Slices, ...]
    reader: str | None = None
    features_per_unit: int = 1
    transposed: bool = False
    blocks: int = 1

    def features(self, units: Sequence[int]) -> Tensor:
        """Columns of the reader that belong to `units`: int64 [units * features_per_unit]."""
        first = torch.as_tensor(units, dtype=torch.long).reshape(-1, 1) * self.features_per_unit
        return (first + torch.arange(self.features_per_unit)).reshape(-1)


@dataclass(frozen=True)
class Units:
    """A part with the tensors that its layer has: what a criterion or a repair is given.

    `layer` is the layer's place in its model.
    """

    part: Part
    tensors: Mapping[str, Tensor]
    layer: int = 0

    @property
    def count(self) -> int:
        return self.part.units

    @property
    def weight(self) -> Tensor:
        """The reader's weight: [outputs, features]; BadInput where no one module reads the units."""
        if self.part.reader is None:
            raise BadInput(
                f"the method looks at what reads {self.part.kind}, which in this model no one module does; "
                "give one that scores experts (`resprout methods` lists what each scores)"
            )
        weight = self.tensors[f"{self.part.reader}.weight"]
        return weight.T if self.part.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """The reader's bias: [outputs], None where it has none."""
        return self.tensors.get(f"{self.part.reader}.bias")

    def coupled(self, tensors: Mapping[str, Tensor] | None = None) -> Iterator[Tensor]:
        """The values that leave with each unit, [units, values] for each tensor they are in.

        `tensors` of the same names (gradients, say) may stand in for the layer's own.
        """
        source = self.tensors if tensors is None else tensors
        for one in self.part.slices:
            yield one.of(source[one.name])

    def by_slice(self) -> Iterator[tuple[str, Tensor]]:
        """Names of the tensors of two dimensions and more, and their values: [units, slices, values]."""
        for one in self.part.slices:
            tensor = self.tensors[one.name]
            if tensor.dim() > 1:
                yield one.name, one.along(tensor)[one.index.to(tensor.device)].flatten(2)

    def by_unit(self, features: Tensor) -> Tensor:
        """A value for each feature, [features], as [units, features per unit]."""
        return features.view(self.count, self.part.features_per_unit)


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its module, its widths, the parts that it can have, its place in the model."""

    module: Any
    family: Family
    shape: Shape
    widths: Widths
    index: int = 0

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The layer's tensors in memory while the context is open, where they are not there anyway.

        They are copies, of which changes are lost with the context unless the layer is to `keep` them.
        """
        with ExitStack() as fetched:
            for module, hook in _fetching(self.module):
                if hook.offload:
                    fetched.enter_context(_fetched(module, hook))
            yield

    def keep(self) -> None:
        """Take the tensors of the loaded layer as they are now for those that are fetched from here on."""
        for module, hook in _fetching(self.module):
            for name, tensor in module.named_parameters(recurse=False):
                _replace(hook.weights_map, name, tensor.detach().cpu())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The layer's tensors by names from the layer on."""
        return {name: tensor.detach() for name, tensor in self.module.named_parameters()}

    def part(self, kind: Unit) -> Part:
        """The units of `kind`."""
        return part(self.shape, self.widths, kind)

    def units(self, kind: Unit) -> Units:
        """The units of `kind` with their tensors."""
        return Units(self.part(kind), self.tensors, self.index)

    def reader(self, kind: Unit) -> nn.Module:
        """The module that reads what the units of `kind` make."""
        name = self.part(kind).reader
        if name is None:
            raise ValueError(f"units '{kind}' have no reader")
        module: nn.Module = self.module.get_submodule(name)
        return module


@dataclass(frozen=True)
class Anatomy:
    """A decoder: its family, the module that maps ids to hidden states, and its layers in order."""

    family: Family
    decoder: Any
    layers: tuple[Layer, ...]


def anatomy(model: Model) -> Anatomy:
    """The parts of `model`; an unsupported family raises BadInput, which says how to add one."""
    shape = shape_of(model.config.to_dict())
    family = shape.family
    decoder: Any = model.get_submodule(family.decoder)
    layers = getattr(decoder, family.layers)
    return Anatomy(
        family,
        decoder,
        tuple(
            Layer(module, family, shape, shape.widths(index), index) for index, module in enumerate(layers)
        ),
    )


def _fetching(layer: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """The modules of a layer whose own tensors accelerate's hook fetches, each with the hook."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "weights_map", None) is not None:
                yield module, one


def _replace(weights: Any, name: str, tensor: Tensor) -> None:
    """Have accelerate fetch this tensor under `name`, from memory or from a file, as before."""
    from safetensors.torch import save_file

    held, whole = weights.dataset, weights.prefix + name
    if whole in held.state_dict:
        held.state_dict[whole] = tensor
        return
    file = Path(held.save_folder) / f"{whole}.safetensors"
    # The tensors of a file that is there may still be views of it.
    fresh = file.with_suffix(".new")
    save_file({whole: tensor.contiguous()}, fresh)
    fresh.replace(file)
    dtype = str(tensor.dtype).removeprefix("torch.")
    held.index[whole] = {"safetensors_file": str(file), "weight_name": whole, "dtype": dtype}


@contextmanager
def _fetched(module: nn.Module, hook: Any) -> Iterator[None]:
    """Fetch a module's own tensors as accelerate's hook does when it computes, once for the whole context."""
    hook.pre_forward(module)
    hook.offload = False
    try:
        yield
    finally:
        hook.offload = True
        hook.post_forward(module, None)


def is_offloaded(model: Model) -> bool:
    """Whether layers of the model are fetched when they compute."""
    return any(one.is_meta for one in model.parameters())


def part(shape: Shape, widths: Widths, kind: Unit) -> Part:
    """The units of `kind` in a layer of these widths."""
    family, tensors = shape.family, shape.layer_tensors(widths)
    slices = tuple(
        _inside(name, axes, dim, index, shape, widths)
        if kind == "ffn" and "experts" in axes
        else Slices(name, dim, index)
        for name, axes in tensors.items()
        for dim, axis in enumerate(axes)
        if (index := _index(axis, kind, shape, widths)) is not None
    )
    query = widths.heads_per_group * shape.head_dim
    reader, transposed = family.attention_reader, family.transposed
    if kind in DEPTH:
        return Part(kind, 1 if kind == "layers" else len(SUBLAYERS), ())
    if kind == "ffn" and widths.experts:
        return Part(kind, widths.experts * widths.ffn, slices, blocks=widths.experts)
    if kind == "ffn":
        return Part(kind, widths.ffn, slices, family.ffn_reader, 1, transposed)
    if kind == "kv_groups":
        return Part(kind, widths.kv_heads, slices, reader, query, transposed)
    if kind == "heads":
        heads = widths.kv_heads * widths.heads_per_group
        return Part(kind, heads, slices, reader, shape.head_dim, transposed, blocks=widths.kv_heads)
    if kind == "experts":
        return Part(kind, widths.experts, slices)
    return Part(kind, shape.hidden, slices)


def cut(
    tensors: Mapping[str, Tensor], parts: Mapping[Unit, Part], kept: Mapping[Unit, Sequence[int]]
) -> dict[str, Tensor]:
    """The tensors without what belongs to units that are not kept; the others stay as they are."""
    stays: dict[tuple[str, int | None, int], Tensor] = {}
    for kind, units in kept.items():
        removed = torch.ones(parts[kind].units, dtype=torch.bool)
        removed[torch.as_tensor(units, dtype=torch.long)] = False
        for one in parts[kind].slices if bool(removed.any()) else ():
            sizes = tensors[one.name].shape
            size = sizes[one.dim] * (1 if one.outer is None else sizes[one.outer])
            mask = stays.setdefault((one.name, one.outer, one.dim), torch.ones(size, dtype=torch.bool))
            mask[one.index[removed].reshape(-1)] = False
    result = dict(tensors)
    for (name, outer, dim), mask in stays.items():
        tensor = result[name]
        if outer is not None:
            experts = stays.get((name, None, outer), torch.ones(tensor.shape[outer], dtype=torch.bool))
            result[name] = _cut_inside(tensor, outer, dim, mask, experts)
        elif not any((name, dim, other) in stays for other in range(tensor.dim())):
            result[name] = tensor.index_select(dim, mask.nonzero().squeeze(1).to(tensor.device))
    return result


def _cut_inside(tensor: Tensor, outer: int, dim: int, mask: Tensor, experts: Tensor) -> Tensor:
    """The tensor cut along its joined dimensions by `mask`, without the experts that go whole."""
    joined = tensor.movedim((outer, dim), (0, 1)).flatten(0, 1)
    stays = mask & experts.repeat_interleave(tensor.shape[dim])
    left = joined.index_select(0, stays.nonzero().squeeze(1).to(tensor.device))
    return left.unflatten(0, (int(experts.sum()), -1)).movedim((0, 1), (outer, dim))


def _inside(name: str, axes: Axes, dim: int, index: Tensor, shape: Shape, widths: Widths) -> Slices:
    """The slices of a tensor along its FFN axis, for each of its experts."""
    first = torch.arange(widths.experts).view(-1, 1, 1) * shape.axis(axes[dim], widths)
    return Slices(name, dim, (first + index).flatten(0, 1), axes.index("experts"))


def _index(axis: int | str, kind: Unit, shape: Shape, widths: Widths) -> Tensor | None:
    """Positions along an axis that belong to each unit: int64 [units, positions], None where none does."""
    if isinstance(axis, int):
        return None
    if "+" in axis:
        found, offset = [], 0
        for one in axis.split("+"):
            index = _index(one, kind, shape, widths)
            found += [index + offset] if index is not None else []
            offset += shape.axis(one, widths)
        return torch.cat(found, dim=1) if found else None
    each = _rows(axis, kind, shape.head_dim, widths.heads_per_group)
    if each is None:
        return None
    size = shape.axis(axis, widths)
    return torch.arange(size).view(size // each, each)


def _rows(axis: str, kind: Unit, head_dim: int, heads_per_group: int) -> int | None:
    """Positions of an axis for each unit, one unit after another; None where it has none."""
    rows: Mapping[tuple[Unit, str], int] = {
        ("ffn", "ffn"): 1,
        ("experts", "experts"): 1,
        ("hidden", "hidden"): 1,
        ("heads", "query"): head_dim,
        ("kv_groups", "query"): heads_per_group * head_dim,
        ("kv_groups", "key"): head_dim,
        ("kv_groups", "value"): head_dim,
        ("kv_groups", "qkv_by_head"): (heads_per_group + 2) * head_dim,
    }
    return rows.get((kind, axis))
