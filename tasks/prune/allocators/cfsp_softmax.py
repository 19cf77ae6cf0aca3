"""CFSP's coarse step: blocks that turn the stream more keep more (Wang et al., arXiv 2409.13199).

The importance of block l is the mean angle, in units of pi, between what comes into it and what leaves it.
Its budget is in proportion to sigmoid(steepness (I_l - mean I)). The authors' code (lib/prune.py,
wyxscir/CFSP at 00fd1c4) sums angles over 128 samples of 1,024 tokens and divides by 10^4, which is a
steepness of 13.1 on the mean. Where a block's budget exceeds its width that code draws all of them together;
here the block stays whole and the others share what it leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.budget import require_bench, spend_shares
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape, require


@dataclass(frozen=True)
class CfspSoftmax:
    """Budgets by a sigmoid of how far each layer turns the residual stream."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True

    steepness: float = 13.1
    """How much more a layer keeps for each pi that it turns the stream beyond the mean."""

    def __post_init__(self) -> None:
        require("cfsp_softmax", 0, 1000, steepness=self.steepness)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        from resprout.tasks.prune.residual_stream import layer_cosines

        angles = [
            one.arccos().double().mean().item() / math.pi for one in layer_cosines(require_bench(bench))
        ]
        return spend_shares(request, dict.fromkeys(request.kinds, budgets(angles, self.steepness)))


def budgets(angles: list[float], steepness: float) -> list[float]:
    """sigmoid(steepness * (angle - mean)) of each layer."""
    mean = sum(angles) / len(angles)
    return [1 / (1 + math.exp(-steepness * (angle - mean))) for angle in angles]
