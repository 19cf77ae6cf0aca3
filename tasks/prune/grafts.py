"""Weights of a removed layer grafted onto those of its neighbours, by coefficients that are trained.

While a graft is on, a weight W of a layer that stays is computed as

    W + B A + (C D) * R,    b + c * r of the bias beside it,

R (and r) the removed layer's tensor of the same name, frozen, and * the product element by element. B, C and
c start at zero, so that a fresh graft changes nothing; A and D start as LoRA's do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Graft(nn.Module):
    """One tensor's graft: float32 masters; what it computes has the tensor's dtype."""

    def __init__(self, removed: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.removed = removed
        self.coefficients, self.update = nn.ParameterList(), nn.ParameterList()
        if removed.dim() == 1:
            self.coefficients.append(torch.zeros_like(removed, dtype=torch.float32))
            return
        *outer, outputs, inputs = removed.shape
        for pair in (self.coefficients, self.update):
            start = torch.rand(*outer, rank, inputs, generator=generator) * 2 - 1
            pair.append(removed.new_zeros(*outer, outputs, rank, dtype=torch.float32))
            pair.append((start / math.sqrt(inputs)).to(removed.device))

    def forward(self, weight: Tensor) -> Tensor:
        first, *second = self.coefficients
        scale = first @ second[0] if second else first
        grafted = weight.float() + scale * self.removed.float()
        if second:
            grafted = grafted + self.update[0] @ self.update[1]
        return grafted.to(weight.dtype)


def matrices(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's weights of two dimensions and more, and the biases beside them, by name."""
    found = {name: one.detach() for name, one in layer.named_parameters()}
    modules = {name.rpartition(".")[0] for name, one in found.items() if one.dim() > 1}
    return {name: one for name, one in found.items() if one.dim() > 1 or name.rpartition(".")[0] in modules}


@contextmanager
def grafted(
    layer: nn.Module, removed: Mapping[str, Tensor], rank: int, generator: torch.Generator
) -> Iterator[list[Graft]]:
    """Grafts on the tensors of `layer` that have these names; afterwards its weights are what they made."""
    grafts: dict[str, Graft] = {}
    try:
        for name, tensor in removed.items():
            module, _, attribute = name.rpartition(".")
            grafts[name] = Graft(tensor, rank, generator)
            parametrize.register_parametrization(layer.get_submodule(module), attribute, grafts[name])
        yield list(grafts.values())
    finally:
        for name in grafts:
            owner, attribute = layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            with torch.no_grad():
                value = getattr(owner, attribute).detach()
                parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
                owner.get_parameter(attribute).copy_(value)
