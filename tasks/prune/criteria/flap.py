"""FLAP: what fluctuates little can be replaced by its mean (An et al., AAAI 2024, arXiv 2312.11983).

The score of feature j is its weighted input feature variance (WIFV): the sample variance of the down or
output projection's input j over the calibration tokens, times the squared norm of the weight column that
reads it. The authors' code (lib/prune.py, CASIA-IVA-Lab/FLAP at 9bbad71) squares the attention scores once
more before it ranks them; the paper does not, and neither does this.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs
from resprout.tasks.prune.statistics import Moments


class Flap:
    """Variance of a unit's features times the squared weights that read them (WIFV)."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    statistic = Moments

    def score(self, units: Units, inputs: Moments) -> Tensor:
        """Var(X_j) * ||W[:, j]||_2^2 for each feature j: float32 [units, features per unit]."""
        weight = units.weight.float()
        variance = inputs.variance.to(weight.device)
        return units.by_unit(variance * weight.square().sum(dim=0))
