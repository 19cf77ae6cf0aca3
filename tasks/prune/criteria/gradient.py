"""Gradient: norm of dLoss/dW over the columns that read a unit (GraNet, 2021, arXiv 2106.10404).

The paper regrows the weights with the largest |dL/dW|. Of a unit it is the L2 norm over the columns of
down_proj or o_proj that read it. It does not look at those columns themselves, so that units whose columns
are zero can be told apart: by how fast the loss would fall if they grew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs
from resprout.tasks.prune.statistics import GradientSum


@dataclass(frozen=True)
class Gradient:
    """Norm of the gradient of the columns that read a unit, whatever these hold."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    def gradients(self, units: Units) -> GradientSum:
        """The gradient of the reader's weight over all batches."""
        return GradientSum(units, lambda gradient, share: gradient * share)

    def statistic(self, features: int) -> None:
        """None: nothing of the reader's inputs."""

    def score(self, units: Units, gradients: GradientSum, inputs: None) -> Tensor:
        """Float32 [units, 1]."""
        return units.by_unit(gradients.matrix.square().sum(dim=0)).sum(dim=1, keepdim=True).sqrt()
