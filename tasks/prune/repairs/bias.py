"""FLAP's baseline bias compensation (An et al., AAAI 2024, arXiv 2312.11983).

A removed feature is replaced by its mean over the calibration tokens: what the mean adds to the output
through the removed columns becomes an output bias, b = W[:, removed] mean[removed].
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Repaired
from resprout.tasks.prune.statistics import Moments, Statistic


class Bias:
    """The removed features' mean, through the removed weights, as an output bias."""

    adds_biases: ClassVar[bool] = True

    statistic = Moments

    def repair(self, units: Units, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The kept columns, and W[:, removed] mean[removed] added to the bias the reader may have."""
        if not isinstance(statistic, Moments):
            raise TypeError("repair 'bias' needs Moments")
        weight = units.weight.float()
        removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        removed[kept] = False
        mean = (statistic.mean.to(weight.device) * removed).float()
        bias = weight @ mean
        if units.bias is not None:
            bias += units.bias.float()
        return Repaired(units.weight[:, kept], bias.to(units.weight.dtype))
