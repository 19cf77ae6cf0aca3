"""FLAP's adaptive structure search (An et al., AAAI 2024, arXiv 2312.11983).

Scores of each layer and kind are standardised over features, (S - mean) / std, so that they compare across
layers and between attention and FFN; then all units stand in one ranking and the best are kept until the
parameters that they bring are spent (a KV group weighs as many parameters as it has, which is the paper's
compensation). The paper ranks single channels; here blocks of `round_to` channels in order of their score
stand in the ranking by their mean, so that every width is a multiple of `round_to`, and round_to = 1 is the
paper's ranking. Each layer keeps at least one block and one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.models.size import Shape
from resprout.tasks.prune.target import block_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.tasks.models.anatomy import Kind
    from resprout.tasks.prune.contracts import Request, Scores


@dataclass(frozen=True)
class _Block:
    """The next-best `units` of a layer's kind, worth `value` each on average."""

    layer: int
    kind: Kind
    rank: int
    units: int
    value: float
    params: int


class GlobalStandardised:
    """Keeps the units that stand out most in their own layer, wherever that is."""

    per_layer: ClassVar[bool] = True

    def allocate(self, request: Request, scores: Scores) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        shape = request.shape
        kept: dict[Kind, list[int]] = {
            "ffn": [0] * shape.layers if "ffn" in request.kinds else list(shape.ffn),
            "kv_groups": [0] * shape.layers if "kv_groups" in request.kinds else list(shape.kv_heads),
        }
        left = (
            request.limit - replace(shape, ffn=tuple(kept["ffn"]), kv_heads=tuple(kept["kv_groups"])).params
        )
        blocks = [
            block
            for layer, by_kind in enumerate(scores)
            for kind in request.kinds
            for block in _blocks(layer, kind, by_kind[kind], request)
        ]
        # Every layer's best block first (it must keep one), then by value.
        blocks.sort(key=lambda b: (b.rank > 0, -b.value, b.layer, b.kind, b.rank))
        closed: set[tuple[int, Kind]] = set()
        for block in blocks:
            place = (block.layer, block.kind)
            if place in closed or block.params > left:
                closed.add(place)
                continue
            kept[block.kind][block.layer] += block.units
            left -= block.params
        return replace(shape, ffn=tuple(kept["ffn"]), kv_heads=tuple(kept["kv_groups"]))


def standardised(scores: Tensor) -> Tensor:
    """Unit values after standardising over all features: float32 [units]; equal scores give zeros."""
    spread = scores.std(correction=0)
    return ((scores - scores.mean()) / spread.clamp_min(1e-30)).mean(dim=1)


def _blocks(layer: int, kind: Kind, scores: Tensor, request: Request) -> Iterator[_Block]:
    values = standardised(scores).sort(descending=True, stable=True).values
    sizes = block_sizes(len(values), request.round_to if kind == "ffn" else 1)
    each = request.shape.params_per_channel if kind == "ffn" else request.shape.params_per_group
    for rank, (size, part) in enumerate(zip(sizes, values.split(sizes), strict=True)):
        yield _Block(layer, kind, rank, size, part.mean().item(), size * each)
