"""Second-order removal of structures one at a time (ZipLM, Kurtic et al., NeurIPS 2023, arXiv 2302.04089).

The Hessian of a layer's squared output error is that of its reader's inputs, H = X X^T + lambda I with
lambda = damping * mean(diag X X^T); oBERT (arXiv 2203.07259) takes the empirical Fisher in its place.
The structure that costs least leaves, the others and the inverse Hessian are adjusted for that, and so
on until none is left (tasks/prune/elimination.py). The weights adjusted on the way are those that repair
`least_squares` finds in closed form for the same damping, so this returns the order alone.

A structure's score is the error once it and all that left before it are gone, as a share of the error
once all are gone, tr(W H W^T): 1 for the last to leave, what ZipLM's search adds up over the layers.
It rises along the order of removal, strictly (equal neighbours are set one float32 apart), so that the
best n scores are what the elimination left when n were left, for any n. Of query heads each group loses
one in turn, as plans do.

Costs and updates are the paper's equations 2 to 4. IST-DASLab/ZipLM holds no code; its routine lives on in
IST-DASLab/DarwinLM (src/fast_obc_struct.py), with which these agree: weights of features that are always zero
count as zero, so that they leave first. The paper trains between levels; here `spdy` spends a budget once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.contracts import Needs
from resprout.tasks.prune.elimination import eliminate
from resprout.tasks.prune.statistics import Gram


@dataclass(frozen=True)
class Obs:
    """Order of removal, one structure at a time, by the inverse Hessian of the reader's inputs."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")
    cumulative: ClassVar[bool] = True
    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean; as `prune.ridge` for the repair."""

    def __post_init__(self) -> None:
        require("obs", 0, damping=self.damping)

    def statistic(self, features: int) -> Gram:
        """Gram matrix of the features."""
        return Gram(features)

    def score(self, units: Units, inputs: Gram) -> Tensor:
        """Error once the unit and all before it are gone, over that of removing all: float32 [units, 1].

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
        found = eliminate(inverse, weight.T @ weight, part.features_per_unit, part.blocks)
        error = found.cost.cumsum(0) / ((weight @ hessian) * weight).sum().clamp_min(1e-300)
        scores = torch.empty(units.count, 1)
        scores[found.order.cpu(), 0] = rising(error.float().cpu())
        return scores


def rising(values: Tensor) -> Tensor:
    """Non-negative float32 values that rise or stay equal, made to rise strictly by the least possible."""
    # Whole numbers with the bits of non-negative floats stand in the same order as these.
    bits, steps = values.view(torch.int32), torch.arange(len(values), dtype=torch.int32)
    return ((bits - steps).cummax(0).values + steps).view(torch.float32)
