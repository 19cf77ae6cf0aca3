"""Second-order removal of structures one at a time (ZipLM, Kurtic et al., NeurIPS 2023, arXiv 2302.04089).

The Hessian of a layer's squared output error is that of its reader's inputs, H = X X^T + lambda I with lambda
= damping * mean(diag X X^T); oBERT (arXiv 2203.07259) takes the empirical Fisher in its place. With the
layer-wise objective ||W X - W' X||^2 + lambda ||W' - W||^2, removing structure S (its columns, the others
adjusted at their best) costs

    e(S) = tr(W_S [(H^-1)_SS]^-1 W_S^T),

after which the columns that stay are W - W_S [(H^-1)_SS]^-1 (H^-1)_S: and their inverse Hessian is H^-1 -
(H^-1)_:S [(H^-1)_SS]^-1 (H^-1)_S: (the paper's eq. 2 to 4; Hassibi and Stork, 1993, for single weights). The
structure that costs least leaves, the others and the inverse Hessian are adjusted for that, and so on until
none is left. The weights adjusted on the way are those that repair `least_squares` finds in closed form for
the same damping, so this returns the order alone.

Costs need of W no more than M = W^T W, e(S) = tr([(H^-1)_SS]^-1 M_SS), so both H^-1 and M are symmetric
matrices that lose a few columns at a time. As in a pivoted Cholesky factorisation the changes are kept
as thin panels and brought into the matrices by one product for every PANEL columns: O(features^3) in
matrix products, where updating both matrices after each removal would spend its time on memory. Nothing
is inverted again.

A structure's score is the error once it and all that left before it are removed, as a share of the error
once all are removed, tr(W H W^T): 1 for the last to leave, what ZipLM's search adds up over the layers.
It rises along the order of removal, strictly (equal neighbours are set one float32 apart), so that the
best n scores are what the elimination left when n were left, for any n. Of query heads each group loses
one in turn, as plans do.

IST-DASLab/ZipLM holds no code; its routine lives on in IST-DASLab/DarwinLM (src/fast_obc_struct.py), with
which these agree: weights of features that are always zero count as zero, so that they leave first. The paper
trains between levels; here `spdy` spends a budget once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs, require
from resprout.tasks.prune.statistics import Gram

PANEL = 64
"""Columns eliminated before the panels are brought into the matrices."""


@dataclass(frozen=True)
class Obs:
    """Order of removal, one structure at a time, by the inverse Hessian of the reader's inputs."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")
    cumulative: ClassVar[bool] = True
    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean; as `prune.ridge` for the repair."""

    def __post_init__(self) -> None:
        require("obs", 0, damping=self.damping)

    statistic = Gram

    def score(self, units: Units, inputs: Gram) -> Tensor:
        """Error once the unit and all before it are removed, over that of removing all: float32 [units, 1].

        Solved in float64, as elimination subtracts what is nearly equal. Fewer tokens than features
        without damping, or a singular Hessian, raise StageFailed.
        """
        hessian = inputs.matrix.to(units.weight.device, torch.float64)
        weight = units.weight.double().masked_fill(hessian.diagonal() == 0, 0.0)
        hessian.diagonal().add_(self.damping * hessian.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed) or (self.damping <= 0 and inputs.tokens < len(hessian)):
            raise StageFailed(
                f"criterion 'obs' cannot invert the Hessian of {units.part.kind}: {inputs.tokens} "
                f"calibration tokens for {len(hessian)} features with damping {self.damping}; give more "
                "calibrate.samples, or criterion_settings.damping: 0.01 or more"
            )
        inverse = torch.cholesky_inverse(factor)
        part = units.part
        order, cost = eliminate(inverse, weight.T @ weight, part.features_per_unit, part.blocks)
        error = cost.cumsum(0) / ((weight @ hessian) * weight).sum().clamp_min(1e-300)
        scores = torch.empty(units.count, 1)
        scores[order.cpu(), 0] = rising(error.float().cpu())
        return scores


def rising(values: Tensor) -> Tensor:
    """Non-negative float32 values that rise or stay equal, made to rise strictly by the least possible."""
    # Whole numbers with the bits of non-negative floats stand in the same order as these.
    bits, steps = values.view(torch.int32), torch.arange(len(values), dtype=torch.int32)
    return ((bits - steps).cummax(0).values + steps).view(torch.float32)


def eliminate(inverse: Tensor, gram_of_weights: Tensor, size: int, blocks: int = 1) -> tuple[Tensor, Tensor]:
    """The order in which structures leave, int64 [units], and what each adds to the error.

    Each time the one that costs least is removed; ties go to the lower index.
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
    return torch.stack(order), torch.stack(cost)


class _State:
    """Matrices as of the last joining, panels of changes since, and diagonal blocks up to date."""

    def __init__(self, inverse: Tensor, weights: Tensor, size: int) -> None:
        self.size = size
        self.inverse, self.weights = inverse, weights
        self.units = torch.arange(len(inverse) // size, device=inverse.device)
        self._start()

    def _start(self) -> None:
        count, size = len(self.units), self.size
        self.removed = torch.zeros(count, dtype=torch.bool, device=self.units.device)
        self.inverse_blocks = _diagonal_blocks(self.inverse, count, size)
        self.weight_blocks = _diagonal_blocks(self.weights, count, size)
        self.columns = 0
        room = max(PANEL, size)
        self.left = self.inverse.new_zeros(count * size, room)
        self.right = self.inverse.new_zeros(count * size, room)

    def costs(self) -> Tensor:
        """e(S) of each structure: [structures], infinite for removed ones."""
        if self.size == 1:
            costs = self.weight_blocks.view(-1) / self.inverse_blocks.view(-1)
        else:
            factor = torch.linalg.cholesky_ex(self.inverse_blocks).L
            solved = torch.cholesky_solve(self.weight_blocks, factor)
            costs = solved.diagonal(dim1=1, dim2=2).sum(dim=1)
        return costs.masked_fill(self.removed, torch.inf)

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
        self.removed[place] = True
        self.columns += size
        if self.columns + size > self.left.shape[1]:
            self._join()

    def _join(self) -> None:
        """Bring the panels into the matrices, without the structures that are removed."""
        stay = ~self.removed
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
