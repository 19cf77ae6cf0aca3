"""Wanda-sp: Wanda's |W| * ||X|| (Sun et al., arXiv 2306.11695, eq. 1) summed over what reads a feature.

The structured form is that of An et al. (arXiv 2312.11983, baselines): the score of feature j is
sum_i |W[i, j]| * ||X_j||_2, W the down or output projection and X_j its input j over all calibration tokens.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs
from resprout.tasks.prune.statistics import Moments


class WandaSp:
    """Absolute weights times the norm of their input, summed."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    statistic = Moments

    def score(self, units: Units, inputs: Moments) -> Tensor:
        """sum_i |W[i, j]| * ||X_j||_2 for each feature j: float32 [units, features per unit]."""
        norm = inputs.norm.to(units.weight.device)
        return units.by_unit(units.weight.abs().sum(dim=0, dtype=torch.float32) * norm)
