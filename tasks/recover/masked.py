"""Training that leaves masked columns of weights exactly zero, by adapters or of the weights themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from resprout.tasks.prune.masking import Columns

PREFIX = "base_model.model."
"""Prefix that peft adds to the names of a model's modules."""


@torch.no_grad()
def leave_masked(adapted: Any, columns: Columns) -> None:
    """Zero the columns of A that read masked inputs, and their gradients; without columns nothing changes.

    The update of a weight is B A: where a column of A is zero the merged column is W's own. Adapters start as
    they would without masks, and optimizers without weight decay leave a weight whose gradient is zero.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules() if columns else ():
        masked = columns.get(f"{name.removeprefix(PREFIX)}.weight")
        if masked and isinstance(module, LoraLayer):
            for each in module.lora_A.values():
                # Where ranks grow peft has the matrix itself there.
                weight = each if isinstance(each, Tensor) else each.weight
                index = torch.tensor(masked[1], device=weight.device)
                weight[:, index] = 0
                weight.register_hook(partial(_without, index))


def hold_masked(model: Any, columns: Columns) -> None:
    """Zero the gradients of what is masked in parameters that are trained themselves."""
    for name, masked in columns.items():
        parameter = model.get_parameter(name)
        if masked is None:
            parameter.register_hook(torch.zeros_like)
        else:
            index = torch.tensor(masked[1], device=parameter.device)
            parameter.register_hook(partial(_without, index, dim=masked[0]))


def _without(index: Tensor, gradient: Tensor, dim: int = 1) -> Tensor:
    return gradient.index_fill(dim, index, 0.0)
