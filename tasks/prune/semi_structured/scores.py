"""What single weights are worth: magnitude, and Wanda (Sun et al., ICLR 2024, arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor

from resprout.tasks.prune.statistics import Moments


def magnitude(weight: Tensor) -> Tensor:
    """|W|: float32 [outputs, inputs]."""
    return weight.float().abs()


def wanda(weight: Tensor, inputs: Moments) -> Tensor:
    """|W_ij| ||X_j||_2, X_j input j over all calibration tokens (eq. 1): float32 [outputs, inputs]."""
    return weight.float().abs() * inputs.norm.to(weight.device)
