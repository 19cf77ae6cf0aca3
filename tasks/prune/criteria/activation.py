"""Activation: the size of a unit's outputs on calibration data (Minitron, arXiv 2407.14679, sec. 2.2).

The score of an FFN channel is its activation, that of a head or group the L2 norm of its output, each brought
to one number first over the tokens of a sample and then over samples: `mean` of absolute values, `l2` norm,
or `var`iance. Channels of a head are aggregated one by one and joined by the L2 norm last, as the authors'
software does (NVIDIA Model-Optimizer); where tokens and samples are both aggregated by L2, that equals the
paper's norm of each output. The paper compares the aggregations; the authors' software takes `mean` over
tokens and `l2` over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.contracts import Needs
from resprout.tasks.prune.statistics import Moments, moments

_AGGREGATIONS: Mapping[str, Callable[[int, Tensor, Tensor], Tensor]] = {
    "mean": lambda items, mean, variance: mean,
    "l2": lambda items, mean, variance: (items * (variance + mean.square())).sqrt(),
    "var": lambda items, mean, variance: variance,
}
"""What a number of items comes to by its mean and its variance (divisor items)."""


TAKEN_UP = 64
"""Samples that are taken up into the moments at a time."""


class _Samples:
    """Inputs aggregated over the tokens of each sample, and the moments of that over samples."""

    light: ClassVar[bool] = True

    def __init__(self, features: int, over_tokens: str) -> None:
        self._how = over_tokens
        self._samples = Moments(features)
        self._new: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features]."""
        seen = inputs.abs() if self._how == "mean" else inputs
        self._new += [_AGGREGATIONS[self._how](inputs.shape[1], *moments(sample)) for sample in seen]
        if len(self._new) >= TAKEN_UP:
            self._take_up()

    def _take_up(self) -> None:
        if self._new:
            self._samples.update(torch.stack(self._new))
            self._new = []

    def joined(self, over_samples: str) -> Tensor:
        """One number for each feature: float32 [features]."""
        self._take_up()
        samples = self._samples
        variance = samples.centred / samples.tokens
        return _AGGREGATIONS[over_samples](samples.tokens, samples.mean, variance).float()


@dataclass(frozen=True)
class Activation:
    """Size of a unit's outputs, aggregated over the tokens of a sample and over samples."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    over_tokens: Literal["mean", "l2", "var"] = "l2"
    """How the tokens of a sample become one number."""
    over_samples: Literal["mean", "l2", "var"] = "mean"
    """How the numbers of all samples become one."""

    def statistic(self, features: int) -> _Samples:
        """Aggregates of each sample."""
        return _Samples(features, self.over_tokens)

    def score(self, units: Units, inputs: _Samples) -> Tensor:
        """The L2 norm of a unit's aggregated features: float32 [units, 1]."""
        return units.by_unit(inputs.joined(self.over_samples)).norm(dim=1, keepdim=True)
