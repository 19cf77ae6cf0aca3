"""Gradient: the norm of the loss's gradient of what reads a unit (GraNet, 2021, arXiv 2106.10404).

The paper regrows the weights with the largest |dL/dW|. Of a unit it is the L2 norm over the columns of
down_proj or o_proj that read it. It does not look at those columns themselves, so that units whose columns
are zero can be told apart: by how fast the loss would fall if they grew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Needs


class _Gradient:
    """The gradient of the reader's weight over all batches: float32, as large as the reader."""

    def __init__(self, units: Units) -> None:
        self.names = (f"{units.part.reader}.weight",)
        self.elements = units.weight.numel()
        self.sum = torch.zeros(())

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the reader's weight."""
        self.sum = self.sum.to(gradient.device) + gradient.float() * share


@dataclass(frozen=True)
class Gradient:
    """Norm of the gradient of the columns that read a unit, whatever these hold."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    def gradients(self, units: Units) -> _Gradient:
        """The gradient of the reader's weight."""
        return _Gradient(units)

    def statistic(self, features: int) -> None:
        """None: nothing of the reader's inputs."""

    def score(self, units: Units, gradients: _Gradient, inputs: None) -> Tensor:
        """Float32 [units, 1]."""
        whole = gradients.sum.T if units.part.transposed else gradients.sum
        return units.by_unit(whole.square().sum(dim=0)).sum(dim=1, keepdim=True).sqrt()
