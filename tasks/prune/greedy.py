"""The order in which units of depth leave one at a time, each time the one whose removal changes least.

Up to the changed layer the residual stream is that of the round, which is kept for one batch at a time, so a
round costs half a forward pass for each unit rather than a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.core.job import Progress
from resprout.tasks.models.depth import Block, blocks
from resprout.tasks.models.size import shape_of
from resprout.tasks.models.trial import BATCH_TOKENS, Trial

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Seen = Callable[[Trial, Tensor, list[Block], int, Tensor], Tensor]
"""What is compared of a run: `(trial, ids, gone, start, stream in front of layer start)` to
[rows, tokens, features]; `start` may be the number of layers."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Of two runs, float32 [rows, tokens, features] each: [rows, tokens]."""


def logits(trial: Trial, ids: Tensor, gone: list[Block], start: int, stream: Tensor) -> Tensor:
    """The model's logits."""
    return trial.logits(ids, gone, start, stream)


def last_stream(trial: Trial, ids: Tensor, gone: list[Block], start: int, stream: Tensor) -> Tensor:
    """The residual stream behind the last layer, in front of the last norm."""
    if start == len(trial.parts.layers):
        return stream
    return trial.inputs(ids, gone, start, stream)[-1]


def removal_ranks(
    model: PreTrainedModel,
    kind: Unit,
    input_ids: Tensor,
    removed_ratio: float,
    seen: Seen,
    distance: Distance,
    progress: Progress,
    spared: float = 0.0,
) -> list[dict[Unit, Tensor]]:
    """Ranks of removal: float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers.

    In every round each unit that is still there is left out by itself, what is `seen` is compared with the
    uncut model's, and the unit that changes it least leaves: 0 for the first to go, 1 for the second, and so
    on. After `removed_ratio` of all units (and at least one) the rest follow in the order of what the last
    round measured of them; what may never be removed ranks behind all others.

    The first layers, up to the share `spared` of them, are no candidates until that share of the units is
    gone; where they never become so they rank behind the others, the first of them last.
    """
    shape = shape_of(model.config.to_dict())
    left = list(blocks(shape, kind))
    removed: list[Block] = []
    rounds = min(len(left), max(1, math.ceil(len(left) * removed_ratio)))
    last, total = len(left), len(left)
    front = math.floor(spared * shape.layers) if spared else -1
    late = [block for block in left if block.layer <= front]
    left = [block for block in left if block.layer > front]
    dense = _Batches(model, input_ids, seen)
    order: list[Block] = []
    for index in range(rounds):
        if late and (not left or index > math.floor(spared * total)):
            left, late = [*late, *left], []
        changes = dense.changes(removed, left, distance)
        order = [left[one] for one in changes.sort(stable=True).indices.tolist()]
        removed.append(order[0])
        left.remove(order[0])
        progress(index + 1, rounds, f"{kind} removed in trial")
    rows = 1 if kind == "layers" else 2
    scores = [{kind: torch.full((rows, 1), float(last))} for _ in range(shape.layers)]
    for rank, block in enumerate([*removed, *order[1:], *reversed(late)]):
        scores[block.layer][kind][block.row] = rank
    return scores


class _Batches:
    """Calibration tokens in batches, with the uncut model's residual stream behind its last layer."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, seen: Seen) -> None:
        self.trial, self.seen = Trial(model), seen
        self.layers = len(self.trial.parts.layers)
        self.ids = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
        self.ends = [self.trial.inputs(ids)[-1] for ids in self.ids]

    def changes(self, removed: list[Block], tried: list[Block], distance: Distance) -> Tensor:
        """Summed distance once each of `tried` goes beside `removed`: float64 [tried]."""
        found = torch.zeros(len(tried), dtype=torch.float64)
        for ids, end in zip(self.ids, self.ends, strict=True):
            uncut = self.seen(self.trial, ids, [], self.layers, end).float()
            stream = self.trial.inputs(ids, removed)
            for index, block in enumerate(tried):
                cut = self.seen(self.trial, ids, [*removed, block], block.layer, stream[block.layer])
                found[index] += distance(uncut, cut.float()).double().sum().cpu()
        return found
