"""FLAP: what fluctuates little can be replaced by its mean (An et al., AAAI 2024, arXiv 2312.11983).

The score of feature j is its weighted input feature variance (WIFV): the sample variance of the down or
output projection's input j over the calibration tokens, times the squared norm of the weight column that
reads it. The authors' code (lib/prune.py, CASIA-IVA-Lab/FLAP at 9bbad71) squares the attention scores once
more before it ranks them; the paper does not, and neither does this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from resprout.tasks.models.anatomy import Part
from resprout.tasks.prune.contracts import moments_given

if TYPE_CHECKING:
    from resprout.tasks.prune.statistics import Moments


class Flap:
    """Scores by the weighted variance of the input."""

    calibrated: ClassVar[bool] = True

    def score(self, part: Part, inputs: Moments | None) -> Tensor:
        """Var(X_j) * ||W[:, j]||_2^2 for each feature j: float32 [units, features per unit]."""
        weight = part.reader.linear.weight.float()
        variance = moments_given(inputs).variance.to(weight.device)
        return (variance * weight.square().sum(dim=0)).reshape(part.units, -1)
