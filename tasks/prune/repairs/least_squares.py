"""The kept weights solved again so that the layer's output changes least on the calibration data.

With X the reader's inputs [features, tokens], K the kept and R the removed features, and G = X X^T, the
W' that minimises ||W X - W' X_K||^2 + lambda ||W' - W_K||^2 is

    W' = W_K + W_R G[R, K] (G[K, K] + lambda I)^-1,    lambda = ridge * mean(diag G).

This is the layer-wise reconstruction of structured pruning by second-order methods (OSSCAR, Meng et al.,
arXiv 2403.12983; the end of ZipLM's one-at-a-time updates, arXiv 2302.04089); the damping pulls towards
the kept weights rather than towards zero, so that it alone changes nothing. X are the inputs in the
uncut model, each layer by itself.

With `inputs: pruned` the layers are taken in order, and the kept features are those that the model has
once the layers before are cut and repaired, Z [kept features, tokens], against the outputs Y = W X of
the uncut model:

    W' = W_K + (Y Z^T - W_K Z Z^T) (Z Z^T + lambda I)^-1,    lambda = ridge * mean(diag Z Z^T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Repaired
from resprout.tasks.prune.statistics import Gram, Statistic, Targets


@dataclass(frozen=True)
class LeastSquares:
    """The kept weights solved again so that the layer's output changes least."""

    inputs: Literal["dense", "pruned"] = "dense"
    """Inputs that a layer is solved on: the uncut model's, or those left once the layers before are cut."""

    statistic = Gram
    targets = Targets

    def repair(self, units: Units, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """W' [outputs, kept features] by Cholesky in float32; a singular G raises StageFailed."""
        if not isinstance(statistic, Gram):
            raise TypeError("repair 'least_squares' needs a Gram matrix")
        weight = units.weight
        gram = statistic.matrix.to(weight.device)
        kept = kept.to(weight.device)
        mask = torch.ones(len(gram), dtype=torch.bool, device=weight.device)
        mask[kept] = False
        removed = mask.nonzero().squeeze(1)
        if len(removed) == 0:
            return Repaired(weight[:, kept])
        damping = ridge * gram.diagonal().mean()
        pull = gram[kept][:, removed] @ weight[:, removed].float().T
        return _changed(weight[:, kept], gram[kept][:, kept], pull, damping)

    def solve(self, units: Units, kept: Tensor, targets: Targets, ridge: float) -> Repaired:
        """W' [outputs, kept features] for the pruned model's inputs; a singular Z Z^T raises StageFailed."""
        weight = units.weight[:, kept.to(units.weight.device)]
        gram = targets.gram.matrix
        pull = (targets.outputs(units.bias) - weight.float() @ gram).T
        return _changed(weight, gram, pull, ridge * gram.diagonal().mean())


def _changed(weight: Tensor, gram: Tensor, pull: Tensor, damping: Tensor) -> Repaired:
    """Weight + [(gram + damping I)^-1 pull]^T, in the weight's dtype."""
    gram = gram.clone()
    gram.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise StageFailed(
            "the Gram matrix of the calibration activations is singular, so least_squares has no "
            "solution; raise prune.ridge, or recover.reconstruct.ridge where that solves (0.01 is usual), "
            "or give more calibration tokens than a layer is wide"
        )
    solved = (weight.float() + torch.cholesky_solve(pull, factor).T).to(weight.dtype)
    if not bool(torch.isfinite(solved).all()):
        raise StageFailed(
            "least_squares gave weights that are not finite; the model's activations overflow in this "
            "dtype: give model.dtype: bfloat16 or float32"
        )
    return Repaired(solved)
