"""CFSP's fine criterion: activation times relative weight within the block (Wang et al., arXiv 2409.13199).

With a_j = ||X_j||_2 the norm of channel j over the calibration tokens, and S_j(W) the relative weight of what
belongs to j:

    score_j = a_j (S_j(W_down a) + S_j(W_up) + S_j(W_gate)).

The released code (lib/prune.py, wyxscir/CFSP at 00fd1c4, `three_w_one_wa`) divides each channel's weights by
that channel's own sum and takes their mean, so that S_j is 1 / hidden for all channels and a_j alone is left
(`relative_to: channel`). With `relative_to: block` the sum runs over all channels of the block, so that
weights count. The coarse part is the allocator `cfsp_softmax`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs
from resprout.tasks.prune.statistics import Moments


@dataclass(frozen=True)
class Cfsp:
    """Activation norm times relative weight."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn",)

    relative_to: Literal["channel", "block"] = "channel"
    """Whose sum a channel's weights are divided by: its own, as in the released code, or the block's."""

    statistic = Moments

    def score(self, units: Units, inputs: Moments) -> Tensor:
        """Score of each channel: float32 [units, 1]."""
        norm = inputs.norm.to(units.weight.device)
        total = torch.zeros_like(norm)
        for name, values in units.by_slice():
            weight = values.float().abs().sum(dim=2)
            if name == f"{units.part.reader}.weight":
                weight = weight * norm[:, None]
            # A fused projection holds two of them, one slice each.
            if self.relative_to == "channel":
                share = weight / weight.clamp_min(1e-30) / values.shape[2]
            else:
                share = weight / weight.sum(dim=0).clamp_min(1e-30)
            total += share.sum(dim=1)
        return units.by_unit(norm * total)
