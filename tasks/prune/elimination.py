"""Optimal brain surgeon for whole structures: which leaves next, and what it costs, by the inverse Hessian.

The layer-wise objective is ||W X - W' X||^2 + lambda ||W' - W||^2 with Hessian H = X X^T + lambda I, the
same for each output row. Removing structure S (its columns, the others adjusted at their best) costs

    e(S) = tr(W_S [(H^-1)_SS]^-1 W_S^T),

after which the columns that stay are W - W_S [(H^-1)_SS]^-1 (H^-1)_S: and their inverse Hessian is H^-1
- (H^-1)_:S [(H^-1)_SS]^-1 (H^-1)_S: (ZipLM, Kurtic et al., NeurIPS 2023, arXiv 2302.04089, eq. 2 to 4;
Hassibi and Stork, 1993, for single weights).

Costs need of W no more than M = W^T W, e(S) = tr([(H^-1)_SS]^-1 M_SS), so both H^-1 and M are symmetric
matrices that lose a few columns at a time. As in a pivoted Cholesky factorisation the changes are kept
as thin panels and brought into the matrices by one product for every PANEL columns: O(features^3) in
matrix products, where updating both matrices after each removal would spend its time on memory. Nothing
is inverted again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 64
"""Columns eliminated before the panels are brought into the matrices."""


@dataclass(frozen=True)
class Elimination:
    """Structures in the order in which they leave, int64 [units], and what each adds to the error."""

    order: Tensor
    cost: Tensor


def eliminate(inverse: Tensor, gram_of_weights: Tensor, size: int, blocks: int = 1) -> Elimination:
    """Remove all structures, each time the one that costs least; ties go to the lower index.

    `inverse` H^-1 and `gram_of_weights` W^T W are [features, features] in float64, `size` consecutive
    features are a structure. Structures lie in `blocks` blocks of equal size which lose one each in
    turn, so that each prefix of whole rounds leaves every block as many.
    """
    units = len(inverse) // size
    state = _State(inverse, gram_of_weights, size)
    left = torch.full((blocks,), units // blocks, device=inverse.device)
    block = torch.arange(units, device=inverse.device) // (units // blocks)
    order, cost = [], []
    for _ in range(units):
        costs = state.costs()
        if blocks > 1:
            fullest = left == left.max()
            costs = costs.masked_fill(~fullest[block[state.units]], torch.inf)
        place = costs.argmin()
        order.append(state.units[place])
        cost.append(costs[place].clamp_min(0.0))
        if blocks > 1:
            left[block[state.units[place]]] -= 1
        state.remove(place)
    return Elimination(torch.stack(order), torch.stack(cost))


class _State:
    """What is left: matrices as of the last joining, panels of changes since, diagonal blocks up to date."""

    def __init__(self, inverse: Tensor, weights: Tensor, size: int) -> None:
        self.size = size
        self.inverse, self.weights = inverse, weights
        self.units = torch.arange(len(inverse) // size, device=inverse.device)
        self._start()

    def _start(self) -> None:
        count, size = len(self.units), self.size
        self.gone = torch.zeros(count, dtype=torch.bool, device=self.units.device)
        self.inverse_blocks = _diagonal_blocks(self.inverse, count, size)
        self.weight_blocks = _diagonal_blocks(self.weights, count, size)
        self.columns = 0
        room = max(PANEL, size)
        self.left = self.inverse.new_zeros(count * size, room)
        self.right = self.inverse.new_zeros(count * size, room)

    def costs(self) -> Tensor:
        """e(S) of each structure: [structures], infinite for those gone."""
        if self.size == 1:
            costs = self.weight_blocks.view(-1) / self.inverse_blocks.view(-1)
        else:
            factor = torch.linalg.cholesky_ex(self.inverse_blocks).L
            solved = torch.cholesky_solve(self.weight_blocks, factor)
            costs = solved.diagonal(dim1=1, dim2=2).sum(dim=1)
        return costs.masked_fill(self.gone, torch.inf)

    def remove(self, place: Tensor) -> None:
        """Take out the structure at `place` of those listed in `units`."""
        size, done = self.size, self.columns
        rows = place * size + torch.arange(size, device=place.device)
        old_left, old_right = self.left[:, :done], self.right[:, :done]
        inverse = self.inverse[:, rows] - old_left @ old_left[rows].T
        weights = self.weights[:, rows] - old_left @ old_right[rows].T - old_right @ old_left[rows].T
        # With (H^-1)_SS = R R^T the change of H^-1 is -l l^T for l = (H^-1)_:S R^-T. That of M = W^T W,
        # for W - W_S R^-T l^T, is -l c^T - c l^T + l s l^T, of which half of the last joins each c.
        factor = torch.linalg.cholesky_ex(inverse[rows]).L
        left = torch.linalg.solve_triangular(factor, inverse.T, upper=False).T
        right = torch.linalg.solve_triangular(factor, weights.T, upper=False).T
        middle = torch.linalg.solve_triangular(factor, right[rows], upper=False)
        right = right - left @ ((middle + middle.T) / 4)
        self.left[:, done : done + size], self.right[:, done : done + size] = left, right
        by_unit, other = left.view(-1, size, size), right.view(-1, size, size)
        self.inverse_blocks -= by_unit @ by_unit.mT
        cross = by_unit @ other.mT
        self.weight_blocks -= cross + cross.mT
        self.gone[place] = True
        self.columns += size
        if self.columns + size > self.left.shape[1]:
            self._join()

    def _join(self) -> None:
        """Bring the panels into the matrices, without the structures that are gone."""
        stay = ~self.gone
        rows = stay.repeat_interleave(self.size).nonzero().squeeze(1)
        left, right = self.left[rows][:, : self.columns], self.right[rows][:, : self.columns]
        cross = left @ right.T
        self.inverse = self.inverse[rows][:, rows] - left @ left.T
        self.weights = self.weights[rows][:, rows] - cross - cross.T
        self.units = self.units[stay]
        self._start()


def _diagonal_blocks(matrix: Tensor, count: int, size: int) -> Tensor:
    """The [size, size] blocks on the diagonal: a copy [count, size, size]."""
    blocks = matrix.view(count, size, count, size).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).clone()
