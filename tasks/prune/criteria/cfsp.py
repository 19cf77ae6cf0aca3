"""CFSP's fine criterion: activation times relative weight within the block (Wang et al., arXiv 2409.13199).

With a_j = ||X_j||_2 the norm of channel j over the calibration tokens, and S_j(W) the sum of abs(W) over what
belongs to j, divided by the same sum over all channels of the block:

    score_j = a_j (S_j(W_down a) + S_j(W_up) + S_j(W_gate)).

The authors' code (lib/prune.py, wyxscir/CFSP at 00fd1c4, `three_w_one_wa`) divides each channel's weights by
that channel's own sum, so that their mean is the same for all channels and a_j alone is left; here the
sum runs over the block, so that the weight is relative within it. The coarse part is the
allocator `cfsp_softmax`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.contracts import Needs
from resprout.tasks.prune.statistics import Moments


class Cfsp:
    """Activation norm times the weights' share of their block."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[tuple[Unit, ...]] = ("ffn",)

    def statistic(self, features: int) -> Moments:
        """Moments of each channel."""
        return Moments(features)

    def score(self, units: Units, inputs: Moments) -> Tensor:
        """Score of each channel: float32 [units, 1]."""
        norm = inputs.norm.to(units.weight.device)
        total = torch.zeros_like(norm)
        for name, values in units.by_slice():
            weight = values.float().abs().sum(dim=2)
            if name == f"{units.part.reader}.weight":
                weight = weight * norm[:, None]
            # A fused projection holds two of them, one slice each.
            total += (weight / weight.sum(dim=0).clamp_min(1e-30)).sum(dim=1)
        return units.by_unit(norm * total)
