"""Removal order by the least change of the logits (FinerCut, Zhang et al., arXiv 2405.18218).

In every round each sublayer (or layer) that is still there is left out by itself, the logits are compared
with those of the uncut model, and the one whose removal changes them least is removed; the next round starts
from what is left. That order is the score (tasks/prune/search.py).

Defaults are those of the authors' code (YaNgZhAnG-V5/llm_dissect): Jensen-Shannon divergence at every token,
and nothing of the first 40 % of the layers before 40 % of the units are removed. It differs in that its
JSD has the arguments of both divergences the other way round, its Euclidean distance is of a whole sample's
logits, its angle stops at a right one, it removes a share of the sublayers instead of parameters, and it may
remove attention that caches need (tasks/models/shape.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from resprout.tasks.core.job import Progress
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs, require
from resprout.tasks.prune.search import Distance, logits, removal_ranks


@dataclass(frozen=True)
class OutputChange:
    """The order in which removal, one at a time, changes the logits least."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("layers", "sublayers")

    metric: Literal["angular", "l2", "jsd"] = "jsd"
    """How logits are compared, token by token: their angle in units of pi, their Euclidean distance, or the
    Jensen-Shannon divergence of their softmax in nats."""
    removed_ratio: float = 0.5
    """Share of the units that are removed one at a time."""
    spared_front: float = 0.4
    """Share of the layers, the first, that stay until as large a share of the units is removed."""
    calibration_tokens: int = 2048
    """About this many calibration tokens are used: whole samples from the first, at least one."""

    def __post_init__(self) -> None:
        require("output_change", 0, 1, removed_ratio=self.removed_ratio)
        require("output_change", 0, 1, spared_front=self.spared_front)
        require("output_change", 1, calibration_tokens=self.calibration_tokens)

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """Float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers: ranks of removal.

        What may never be removed ranks behind all others.
        """
        (kind,) = kinds
        samples = input_ids[: max(1, self.calibration_tokens // input_ids.shape[1])]
        distance = DISTANCES[self.metric]
        ratio, spared = self.removed_ratio, self.spared_front
        return removal_ranks(model, kind, samples, ratio, logits, distance, progress, spared)


def _angular(a: Tensor, b: Tensor) -> Tensor:
    # Above 1 by rounding alone, where arccos is not a number.
    return cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi


def _l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1)


def _jsd(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - mean)).sum(dim=-1) + (q.exp() * (q - mean)).sum(dim=-1))


DISTANCES: Mapping[str, Distance] = {"angular": _angular, "l2": _l2, "jsd": _jsd}
