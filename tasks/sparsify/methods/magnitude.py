"""Magnitude: the largest weights of each group stay (A. Mishra et al., 2021, arXiv 2104.08378)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from resprout.tasks.sparsify.layers import best_mask
from resprout.tasks.sparsify.pattern import Pattern


class Magnitude:
    """The largest weights of each group stay, as they are."""

    needs: ClassVar[str] = "weights"

    def statistic(self, features: int) -> None:
        """None: uses no inputs."""

    def scores(self, weight: Tensor, inputs: Any) -> Tensor:
        """|W|: float32 [outputs, inputs]."""
        return weight.float().abs()

    def sparse(self, weight: Tensor, inputs: Any, pattern: Pattern) -> Tensor:
        """The weight [outputs, inputs] with the pattern's zeros."""
        return weight * best_mask(self.scores(weight, inputs), pattern)
