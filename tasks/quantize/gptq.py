"""GPTQ: weights rounded column by column, those that are left adjusted (Frantar et al., arXiv 2210.17323).

With H = X X^T + lambda I and U the upper Cholesky factor of H^-1, the error of rounding column j, divided by
U_jj, leaves the columns behind it times row j of U: w -= ((w_j - q_j) / U_jj) U_j: (section 3, algorithm 1).
Columns behind a block are brought up to date by one product for each block. Settings are the paper's: blocks
of 128 columns, lambda 1 % of the mean diagonal.

Columns are visited in the order of their diagonal, the largest first, as the authors' code does by its
option act-order; scales of groups are those of the weights before, so that each group keeps one scale
wherever its columns come (their static-groups, actorder: weight in vLLM's terms). Weights of inputs that are
always 0 are rounded to nearest, where the authors' code makes them 0: other text may use them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resprout.tasks.prune.inverse_hessian import inverse_factor
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.quantize.grid import Grid

BLOCK = 128
"""Columns between two updates of all that come later."""
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""


def solve(weight: Tensor, inputs: Gram, grid: Grid, scales: Tensor) -> Tensor:
    """The weight [outputs, inputs] on the grid, in the grid's dtype; `scales` are [outputs, groups].

    Solved in float32; a Hessian that is not finite raises StageFailed.
    """
    order = inputs.matrix.diagonal().argsort(descending=True, stable=True).to(weight.device)
    factor = inverse_factor("GPTQ", inputs, DAMPING, weight.device, order)
    # Columns lie as rows, one after another in memory.
    left = weight.float().T[order].contiguous()
    scale = scales.float().T[order // grid.group(weight.shape[1])]
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = _round_block(left[start:stop], factor[start:stop, start:stop], grid, scale[start:stop])
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return left[order.argsort()].T.contiguous().to(grid.dtype)


def _round_block(left: Tensor, factor: Tensor, grid: Grid, scale: Tensor) -> Tensor:
    """Round columns in place, the later ones adjusted on the way; returns their errors over U_jj."""
    errors = torch.empty_like(left)
    for column in range(len(left)):
        found = grid.nearest(left[column], scale[column])
        errors[column] = (left[column] - found) / factor[column, column]
        left[column:].addr_(factor[column, column:], errors[column], alpha=-1)
        # Exactly on the grid, which the subtraction gives but for rounding.
        left[column] = found
    return errors
