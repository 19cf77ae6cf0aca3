"""What changes the logits least goes first, one after another (FinerCut, Zhang et al., arXiv 2405.18218).

In every round each sublayer (or layer) that is still there is left out by itself, the logits are compared
with those of the uncut model, and the one whose removal changes them least is removed; the next round starts
from what is left. That order is the score: 0 for the first to go, 1 for the second, and so on. After
`removed_ratio` of all units the rest follow in the order of what the last round measured of them.

Up to the changed layer the residual stream is that of the round, which is kept for one batch at a time, so a
round costs half a forward pass for each unit rather than a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from resprout.configs.stages import Unit
from resprout.tasks.job import Progress
from resprout.tasks.models.depth import Block, blocks
from resprout.tasks.models.size import shape_of
from resprout.tasks.models.trial import Trial
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.contracts import Needs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 512
"""Tokens whose logits are in memory at a time: three times 100 MB at 50,000 words."""


@dataclass(frozen=True)
class OutputChange:
    """The order in which removal, one at a time, changes the logits least."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[tuple[Unit, ...]] = ("layers", "sublayers")

    metric: Literal["angular", "l2", "jsd"] = "angular"
    """How logits are compared, token by token: their angle in units of pi, their Euclidean distance, or the
    Jensen-Shannon divergence of their softmax in nats."""
    removed_ratio: float = 0.5
    """Share of the units that are removed one at a time."""
    calibration_tokens: int = 2048
    """About this many calibration tokens are looked at: whole samples from the first, at least one."""

    def __post_init__(self) -> None:
        require("output_change", 0, 1, removed_ratio=self.removed_ratio)
        require("output_change", 1, calibration_tokens=self.calibration_tokens)

    def score_model(
        self, model: PreTrainedModel, kinds: tuple[Unit, ...], input_ids: Tensor, progress: Progress
    ) -> list[dict[Unit, Tensor]]:
        """Float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers: ranks of removal.

        What may never be removed ranks behind all others.
        """
        (kind,) = kinds
        shape = shape_of(model.config.to_dict())
        left = list(blocks(shape, kind))
        removed: list[Block] = []
        rounds = min(len(left), max(1, math.ceil(len(left) * self.removed_ratio)))
        samples = input_ids[: max(1, self.calibration_tokens // input_ids.shape[1])]
        last = len(left)
        dense = _Batches(model, samples)
        order: list[Block] = []
        for index in range(rounds):
            changes = dense.changes(removed, left, DISTANCES[self.metric])
            order = [left[one] for one in changes.sort(stable=True).indices.tolist()]
            removed.append(order[0])
            left.remove(order[0])
            progress(index + 1, rounds, f"{kind} removed in trial")
        ranks = {block: rank for rank, block in enumerate([*removed, *order[1:]])}
        rows = 1 if kind == "layers" else 2
        scores = [{kind: torch.full((rows, 1), float(last))} for _ in range(shape.layers)]
        for block, rank in ranks.items():
            scores[block.layer][kind][block.row] = rank
        return scores


class _Batches:
    """Calibration tokens in batches, with the uncut model's residual stream behind its last layer."""

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self.trial = Trial(model)
        self.layers = len(self.trial.parts.layers)
        self.ids = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
        self.ends = [self.trial.inputs(ids)[-1] for ids in self.ids]

    def changes(
        self, removed: list[Block], tried: list[Block], distance: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Summed distance of the logits once each of `tried` goes beside `removed`: float64 [tried]."""
        found = torch.zeros(len(tried), dtype=torch.float64)
        for ids, end in zip(self.ids, self.ends, strict=True):
            uncut = self.trial.logits(ids, start=self.layers, hidden=end).float()
            stream = self.trial.inputs(ids, removed)
            for index, block in enumerate(tried):
                gone = [*removed, block]
                cut = self.trial.logits(ids, gone, block.layer, stream[block.layer])
                found[index] += distance(uncut, cut.float()).double().sum().cpu()
        return found


def _angular(a: Tensor, b: Tensor) -> Tensor:
    # Above 1 by rounding alone, where arccos is not a number.
    return cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi


def _l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1)


def _jsd(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - mean)).sum(dim=-1) + (q.exp() * (q - mean)).sum(dim=-1))


DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "angular": _angular,
    "l2": _l2,
    "jsd": _jsd,
}
