"""The inverse Hessian of a layer's inputs, factored once for all columns (Frantar and Alistarh, 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.tasks.prune.statistics import Gram


def inverse_factor(
    method: str, inputs: Gram, damping: float, device: torch.device, order: Tensor | None = None
) -> Tensor:
    """The upper Cholesky factor U of (X X^T + lambda I)^-1 = U^T U: float32 [inputs, inputs] on `device`.

    `damping` is lambda as a share of the mean diagonal, `order` int64 [inputs] the order of the columns.
    Inputs that are always 0 get a diagonal of at least 1. A singular Hessian raises StageFailed, which names
    the `method`.
    """
    hessian = inputs.matrix.to(device, torch.float64, copy=True)
    if order is not None:
        hessian = hessian[order][:, order]
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal.add_(damping * diagonal.mean())
    diagonal[dead] = diagonal[dead].clamp_min(1.0)
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed) or (damping <= 0 and inputs.tokens < len(hessian)):
        raise StageFailed(
            f"{method} cannot invert the Hessian: {inputs.tokens} calibration tokens for {len(hessian)} "
            f"features with damping {damping}; give more calibrate.samples, or a damping of 0.01 or more"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
