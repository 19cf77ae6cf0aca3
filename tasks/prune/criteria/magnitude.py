"""Magnitude: the L2 norm of the weights that read a unit (Li et al., ICLR 2017, arXiv 1608.08710).

The structured baseline for language models of An et al. (arXiv 2312.11983): columns of the down and output
projections.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.contracts import Needs


class Magnitude:
    """L2 norm of the weights that read a unit; needs no data."""

    needs: ClassVar[Needs] = "weights"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    def score(self, units: Units) -> Tensor:
        """||W[:, j]||_2 for each feature j: float32 [units, features per unit]."""
        return units.by_unit(units.weight.float().norm(dim=0))
