"""The optimizer of a training: AdamW, or Muon for the matrices of layers with AdamW for the rest.

Muon (Jordan et al., kellerjordan.github.io/posts/muon) takes a step along the nearest orthogonal matrix to
the momentum of each weight, by torch's implementation; embeddings, the head, norms, biases and what is not a
matrix are AdamW's, as there. Its updates are scaled by 0.2 sqrt(max(rows, columns)), so that both have one
learning rate (Liu et al., arXiv 2502.16982). Weights do not decay: what is masked stays zero.

A matrix whose rows and columns are masked whole keeps its zeros: those of the momentum are the update's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from resprout.tasks.models.anatomy import anatomy

Name = Literal["adamw", "muon"]


def optimizer_of(name: Name, learning_rate: float, trained: Mapping[str, Tensor], base: Any) -> Optimizer:
    """The optimizer over what is trained, by name, of `base`, the model below any adapters."""
    if name == "adamw":
        return _adamw(trained.values(), learning_rate)
    within = {id(one) for layer in anatomy(base).layers for one in layer.module.parameters()}
    matrices = [one for one in trained.values() if one.ndim == 2 and id(one) in within]
    rest = [one for one in trained.values() if one.ndim != 2 or id(one) not in within]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(_adamw(rest, learning_rate))
    return Together(parts)


class Together(Optimizer):
    """Optimizers of different parameters as one, with one state and the groups of all.

    Gradient scaling looks for values that are not finite optimizer by optimizer, and all skip a step or none.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        super().__init__([one for part in parts for one in part.param_groups], {})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        groups = iter(self.param_groups)
        for part in self.parts:
            # Loading a state, which accelerate does at once, makes both anew.
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]
            part.step()


def _adamw(parameters: Any, learning_rate: float) -> AdamW:
    return AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
