"""Wanda: weights times the norm of what they read (Sun et al., ICLR 2024, arXiv 2306.11695)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from resprout.tasks.prune.statistics import Moments
from resprout.tasks.sparsify.layers import best_mask
from resprout.tasks.sparsify.pattern import Pattern


class Wanda:
    """The weights of each group that weigh most on their inputs stay, as they are."""

    needs: ClassVar[str] = "inputs"

    statistic = Moments

    def scores(self, weight: Tensor, inputs: Moments) -> Tensor:
        """|W_ij| ||X_j||_2, X_j input j over all calibration tokens (eq. 1): float32 [outputs, inputs]."""
        return weight.float().abs() * inputs.norm.to(weight.device)

    def sparse(self, weight: Tensor, inputs: Moments, pattern: Pattern) -> Tensor:
        """The weight [outputs, inputs] with the pattern's zeros."""
        return weight * best_mask(self.scores(weight, inputs), pattern)
