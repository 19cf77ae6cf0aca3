"""Magnitude: the L2 norm of the weights that read a unit (Li et al., ICLR 2017, arXiv 1608.08710).

The structured baseline for language models of An et al. (arXiv 2312.11983): columns of the down and output
projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from resprout.tasks.models.anatomy import Part

if TYPE_CHECKING:
    from resprout.tasks.prune.statistics import Moments


class Magnitude:
    """Scores by the reader's column norms, without data."""

    calibrated: ClassVar[bool] = False

    def score(self, part: Part, inputs: Moments | None) -> Tensor:
        """||W[:, j]||_2 for each feature j: float32 [units, features per unit]."""
        return part.reader.linear.weight.float().norm(dim=0).reshape(part.units, -1)
