"""Taylor: how the loss changes when a unit's weights vanish (LLM-Pruner, 2023, arXiv 2305.11627).

With the gradient g of the mean loss over the calibration data, and F the diagonal of the empirical Fisher
information (mean of squared gradients), which stands for the Hessian's:

    vector   | sum_k (g_k w_k - F_kk w_k^2 / 2) |   over the unit's weights in one tensor (eq. 3)
    element  sum_k | g_k w_k - F_kk w_k^2 / 2 |     (eqs. 4 and 5)

`order: first` keeps the first term alone, `second` the Fisher term alone, `mixed` both. The tensors that a
unit is coupled with are then joined by sum, product, maximum, or the last alone: what reads the unit's
features (sec. 3.2). Biases are left out, as in the authors' code (horseee/LLM-Pruner at 128a07d). `prod` is
the geometric mean, which ranks as the product does and does not underflow. F comes from the gradients of
batches, of which the paper's are one sample each: with more samples in a batch it weighs less against g. The
code drops the 1/2 of `second`, which ranks alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Slices, Units
from resprout.tasks.prune.interfaces import Kinds, Needs


class _Salience:
    """Sum over batches of g w, less half its square for the Fisher term: of each weight, or of each unit."""

    def __init__(self, units: Units, by_weight: bool, first: float, second: float) -> None:
        self._units = units
        self._by_weight, self._first, self._second = by_weight, first, second
        slices = [one for one in units.part.slices if units.tensors[one.name].dim() > 1]
        self.slices = {one.name: one for one in slices}
        self._sums: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.slices)

    @property
    def elements(self) -> int:
        return sum(
            self._units.tensors[name].numel() if self._by_weight else self._units.count for name in self.names
        )

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the weight `name`."""
        change = gradient.float() * self._units.tensors[name].float()
        if self._second:
            change = self._first * change - self._second / 2 * change.square()
        if not self._by_weight:
            change = self.slices[name].sums(change)
        if name in self._sums:
            self._sums[name].add_(change, alpha=share)
        else:
            self._sums[name] = change.mul_(share)

    def of(self, one: Slices) -> Tensor:
        """The importance of each unit's part of a tensor: [units]."""
        total = self._sums[one.name]
        return one.sums(total.abs()) if self._by_weight else total.abs()


@dataclass(frozen=True)
class Taylor:
    """Estimated change of the loss when a unit's coupled weights vanish."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden")

    form: Literal["vector", "element"] = "element"
    """Absolute value of a unit's sum over a tensor, or sum of its weights' absolute values."""
    order: Literal["first", "second", "mixed"] = "first"
    """Terms of the expansion: gradient, Fisher information, or the first less the second."""
    aggregate: Literal["sum", "prod", "max", "last"] = "sum"
    """How the tensors that a unit is coupled with are joined."""

    def gradients(self, units: Units) -> _Salience:
        """Salience of each coupled weight (element form: float32, as large as they) or unit (vector form)."""
        if self.aggregate == "last" and units.part.reader is None:
            raise BadInput(
                f"criterion_settings.aggregate is last, but no one module reads {units.part.kind}; give sum, "
                "prod or max"
            )
        first, second = self.order != "second", self.order != "first"
        return _Salience(units, self.form == "element", float(first), float(second))

    def statistic(self, features: int) -> None:
        """None: nothing of the reader's inputs."""

    def score(self, units: Units, gradients: _Salience, inputs: None) -> Tensor:
        """Float32 [units, 1]."""
        parts = list(gradients.slices.values())
        if self.aggregate == "last":
            parts = [one for one in parts if one.name == f"{units.part.reader}.weight"]
        each = torch.stack([gradients.of(one) for one in parts])
        joined = {
            "sum": each.sum(dim=0),
            "prod": each.log().mean(dim=0).exp(),
            "max": each.amax(dim=0),
            "last": each[-1],
        }
        return joined[self.aggregate].unsqueeze(1)
