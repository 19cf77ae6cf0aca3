"""States inside the student beside the dense model's: outputs of layers, and of attention alone.

Of TinyBERT (arXiv 1909.10351) and Minitron (arXiv 2407.14679) what needs no matrix of its own: the hidden
size is the same. A student's layer i of n is matched with the dense model's layer ceil((i + 1) N / n) - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.modeling_resprout import first_output

Kind = Literal["hidden", "attention"]
LEAST = 1e-12
"""Squared length of a dense state below which it is not divided by."""


@dataclass(frozen=True)
class Pairs:
    """Modules of the student, each with the dense model's module whose output is its target."""

    student: Sequence[nn.Module]
    dense: Sequence[nn.Module]

    @classmethod
    def of(cls, student: Any, dense: Any, kind: Kind) -> Pairs:
        """The pairs of a kind: of attention where both models have it."""
        mine, theirs = anatomy(student).layers, anatomy(dense).layers
        matched = [theirs[math.ceil((place + 1) * len(theirs) / len(mine)) - 1] for place in range(len(mine))]
        both = [(_module(one, kind), _module(other, kind)) for one, other in zip(mine, matched, strict=True)]
        there = [(one, other) for one, other in both if one is not None and other is not None]
        return cls([one for one, _ in there], [other for _, other in there])

    def error(self, student: Sequence[Tensor], dense: Sequence[Tensor], positions: Tensor) -> Tensor:
        """The sum over targets of |s - t|^2 / |t|^2, a mean over the pairs: a scalar.

        Args:
            student: Outputs of the student's modules, [rows, longest, hidden] each.
            dense: Those of the dense model's.
            positions: Indices of the targets' states into rows * longest.
        """
        found = []
        for mine, theirs in zip(student, dense, strict=True):
            known = theirs.flatten(0, 1)[positions].float()
            apart = (mine.flatten(0, 1)[positions].float() - known).square().sum(-1)
            found.append((apart / known.square().sum(-1).clamp(min=LEAST)).sum())
        return torch.stack(found).mean()


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of modules that run in this order while the context is open."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        seen.append(first_output(output))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        yield seen


def _module(layer: Layer, kind: Kind) -> nn.Module | None:
    if kind == "hidden":
        whole: nn.Module = layer.module
        return whole
    return layer.reader("kv_groups") if layer.widths.kv_heads else None
