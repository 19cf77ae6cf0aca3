"""FLAP's baseline bias compensation (An et al., AAAI 2024, arXiv 2312.11983).

A removed feature is replaced by its mean over the calibration tokens: what the mean adds to the output
through the removed columns becomes an output bias, b = W[:, removed] mean[removed].
"""

from __future__ import annotations

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Part
from resprout.tasks.prune.contracts import Repaired
from resprout.tasks.prune.statistics import Moments, Statistic


class Bias:
    """Adds the removed features' mean contribution to the output."""

    def statistic(self, features: int) -> Statistic | None:
        """Moments, of which the mean is used."""
        return Moments(features)

    def repair(self, part: Part, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The kept columns, and W[:, removed] mean[removed] added to the bias the reader may have."""
        if not isinstance(statistic, Moments):
            raise TypeError("repair 'bias' needs Moments")
        reader = part.reader.linear
        weight = reader.weight.float()
        removed = torch.ones(reader.in_features, dtype=torch.bool)
        removed[kept] = False
        mean = (statistic.mean * removed).float().to(weight.device)
        bias = weight @ mean
        if reader.bias is not None:
            bias += reader.bias.float()
        return Repaired(reader.weight[:, kept], bias.to(reader.weight.dtype))
