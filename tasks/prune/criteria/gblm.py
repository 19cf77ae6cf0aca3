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

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Needs, require
from resprout.tasks.prune.statistics import Moments


class _GradientNorm:
    """Norm of each element of the reader's gradient over batches: float32, as large as the reader."""

    def __init__(self, units: Units, power: int) -> None:
        self._power = power
        self.names = (f"{units.part.reader}.weight",)
        self.elements = units.weight.numel()
        self._sum: Tensor | None = None

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the reader's weight."""
        if self._sum is None:
            self._sum = torch.zeros_like(gradient, dtype=torch.float32)
        # In float32 before the square: those of small gradients vanish in 16 bits.
        self._sum += gradient.float().abs_().pow_(self._power)

    @property
    def matrix(self) -> Tensor:
        """The norms in the layout of the weight."""
        if self._sum is None:
            raise ValueError("no gradient was given")
        return self._sum.pow(1 / self._power)


@dataclass(frozen=True)
class Gblm:
    """Absolute weights times the norms of their gradient and of their input, summed."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    alpha: float = 100.0
    """Weight of gradient norms against input norms."""
    norm: Literal["l1", "l2"] = "l2"
    """Norm over the gradients of batches."""

    def __post_init__(self) -> None:
        require("gblm", 0, alpha=self.alpha)

    def gradients(self, units: Units) -> _GradientNorm:
        """The norm p of the reader's gradients."""
        return _GradientNorm(units, {"l1": 1, "l2": 2}[self.norm])

    def statistic(self, features: int) -> Moments:
        """Moments of each feature."""
        return Moments(features)

    def score(self, units: Units, gradients: _GradientNorm, inputs: Moments) -> Tensor:
        """sum_i |W_ij| * (alpha * ||G_ij|| + ||X_j||) of feature j: float32 [units, features per unit]."""
        weight = units.weight.float()
        norms = gradients.matrix.T if units.part.transposed else gradients.matrix
        reading = (weight.abs() * (self.alpha * norms + inputs.norm.to(weight.device))).sum(dim=0)
        return units.by_unit(reading)
