"""SparseGPT (Frantar and Alistarh, ICML 2023, arXiv 2301.00774): masks and adjusted weights by columns.

With H = X X^T + lambda I and U the upper Cholesky factor of H^-1 (H^-1 = U^T U), row j of U is, but for
a factor, row j of the inverse of H without the columns before j, and U_jj^2 its first entry. So, from
left to right, a weight that goes costs w_j^2 / U_jj^2, and the columns to its right take over its part:
w -= (w_j / U_jj) U_j: (algorithm 1). The mask of a group of columns is chosen when its first column is
reached, from the weights as they are by then (section 3.3). Columns further right than a block are
brought up to date by one product for each block. As IST-DASLab/sparsegpt does for its patterns, but that
lambda is a share of the diagonal before inputs that are always 0 get a diagonal of at least 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resprout.tasks.prune.interfaces import require
from resprout.tasks.prune.inverse_hessian import inverse_factor
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.sparsify.layers import best_mask
from resprout.tasks.sparsify.pattern import Pattern

BLOCK = 128
"""Columns between two updates of all that lie to the right."""


@dataclass(frozen=True)
class SparseGPT:
    """Masks by the inverse Hessian of the inputs, the weights that stay adjusted."""

    needs: ClassVar[str] = "inputs"

    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""

    def __post_init__(self) -> None:
        require("sparsegpt", 0, damping=self.damping)

    statistic = Gram

    def sparse(self, weight: Tensor, inputs: Gram, pattern: Pattern) -> Tensor:
        """The weight [outputs, inputs] with the pattern's zeros; a singular Hessian raises StageFailed."""
        return solve(weight, inputs, pattern, self.damping)


def solve(weight: Tensor, inputs: Gram, pattern: Pattern, damping: float = 0.01) -> Tensor:
    """The weight [outputs, inputs] with the pattern's zeros, the rest adjusted, in its own dtype.

    `damping` is lambda as a share of the mean diagonal of X X^T. Inputs that are always 0 lose their
    weights. Solved in float32; a singular Hessian raises StageFailed.
    """
    pattern.check(weight)
    factor = inverse_factor("SparseGPT", inputs, damping, weight.device)
    dead = inputs.matrix.diagonal().to(weight.device) == 0
    left = weight.float().masked_fill(dead, 0.0)
    block = max(pattern.group, BLOCK // pattern.group * pattern.group)
    for start in range(0, left.shape[1], block):
        stop = min(start + block, left.shape[1])
        errors = _solve_block(left[:, start:stop], factor[start:stop, start:stop], pattern)
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return left.to(weight.dtype)


def _solve_block(left: Tensor, factor: Tensor, pattern: Pattern) -> Tensor:
    """Solve columns in place, masks chosen on the way; returns w_j / U_jj where a weight goes, else 0."""
    errors = torch.zeros_like(left)
    diagonal = factor.diagonal()
    for column in range(left.shape[1]):
        if column % pattern.group == 0:
            group = slice(column, column + pattern.group)
            stay = best_mask((left[:, group] / diagonal[group]).square(), pattern)
        pruned = ~stay[:, column % pattern.group]
        errors[:, column] = left[:, column] / diagonal[column] * pruned
        left[:, column:] -= torch.outer(errors[:, column], factor[column, column:])
        # Exactly 0, which the subtraction gives but for rounding.
        left[pruned, column] = 0.0
    return errors
