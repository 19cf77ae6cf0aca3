"""GBLM: absolute weights times the norms of their gradients and inputs (2023, arXiv 2311.04902).

The paper's metric of a weight, |W_ij| * (alpha * ||G_ij||_p + ||X_j||_2) with ||G_ij||_p over the
gradients of the loss on each sample and ||X_j||_2 over all tokens, is summed over what reads feature j,
as Wanda-sp does with Wanda's. The authors' code (VILA-Lab/GBLM-Pruner at 9e8aea2) divides the squared
norm of inputs, and not that of gradients, by the number of samples; here neither is, as in the paper, so
that alpha means the same for any amount of data. Gradients are those of batches, of which the paper's
are one sample each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs, require
from resprout.tasks.prune.statistics import GradientSum, Moments


@dataclass(frozen=True)
class Gblm:
    """Absolute weights times the norms of their gradient and of their input, summed."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    alpha: float = 100.0
    """Weight of gradient norms against input norms."""
    norm: Literal["l1", "l2"] = "l2"
    """Norm over the gradients of batches."""

    def __post_init__(self) -> None:
        require("gblm", 0, alpha=self.alpha)

    statistic = Moments

    @property
    def _power(self) -> int:
        return {"l1": 1, "l2": 2}[self.norm]

    def gradients(self, units: Units) -> GradientSum:
        """Sums of the p-th powers of the reader's gradients."""
        # In float32 before the square: those of small gradients vanish in 16 bits.
        return GradientSum(units, lambda gradient, share: gradient.abs().pow_(self._power))

    def score(self, units: Units, gradients: GradientSum, inputs: Moments) -> Tensor:
        """sum_i |W_ij| * (alpha * ||G_ij|| + ||X_j||) of feature j: float32 [units, features per unit]."""
        weight = units.weight.float()
        norms = gradients.matrix.pow(1 / self._power)
        reading = (weight.abs() * (self.alpha * norms + inputs.norm.to(weight.device))).sum(dim=0)
        return units.by_unit(reading)
