"""A model tried at other widths: zeros in what its readers are given compute what the cut model would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.trial import Trial

if TYPE_CHECKING:
    from resprout.tasks.models.anatomy import Part
    from resprout.tasks.prune.contracts import Bench, Scores


class Tried:
    """The bench's model, of which each of `places` keeps as many of its best units as it is told."""

    def __init__(self, bench: Bench, scores: Scores, places: Sequence[tuple[Unit, int]]) -> None:
        self.trial = Trial(bench.model)
        layers = bench.among(self.trial.parts.layers)
        self.readers = [layers[layer].reader(kind) for kind, layer in places]
        self.ranks = [
            _ranks(layers[layer].part(kind), scores[layer][kind]).to(bench.model.device)
            for kind, layer in places
        ]
        self.dense = [len(scores[layer][kind]) // layers[layer].part(kind).blocks for kind, layer in places]

    @contextmanager
    def narrowed(self, counts: Sequence[int]) -> Iterator[None]:
        """Each place keeps this many units, of heads in each group, while the context is open."""
        with ExitStack() as hooks:
            for reader, ranks, dense, count in zip(self.readers, self.ranks, self.dense, counts, strict=True):
                if count < dense:
                    hooks.callback(reader.register_forward_pre_hook(_zeros(ranks < count)).remove)
            yield


def _zeros(kept: Tensor) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0] * kept.to(inputs[0].dtype), *inputs[1:]

    return hook


def _ranks(part: Part, scores: Tensor) -> Tensor:
    """The rank of the unit that each feature belongs to, among its block's, the best 0: int64 [features]."""
    order = scores.mean(dim=1).view(part.blocks, -1).sort(dim=1, descending=True, stable=True).indices
    return order.argsort(dim=1).flatten().repeat_interleave(part.features_per_unit)
