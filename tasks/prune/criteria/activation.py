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


class _Rows:
    """Inputs aggregated over the tokens of each sample: float32 [samples, features]."""

    def __init__(self, how: str) -> None:
        self._how = how
        self._rows: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features]."""
        # One row at a time: a float32 copy of the whole batch costs more than the sums.
        self._rows += [_aggregated(row.float(), self._how) for row in inputs]

    @property
    def matrix(self) -> Tensor:
        return torch.stack(self._rows)


@dataclass(frozen=True)
class Activation:
    """Size of a unit's outputs, aggregated over the tokens of a sample and over samples."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads")

    over_tokens: Literal["mean", "l2", "var"] = "l2"
    """How the tokens of a sample become one number."""
    over_samples: Literal["mean", "l2", "var"] = "mean"
    """How the numbers of all samples become one."""

    def statistic(self, features: int) -> _Rows:
        """Aggregates of each sample."""
        return _Rows(self.over_tokens)

    def score(self, units: Units, inputs: _Rows) -> Tensor:
        """The L2 norm of a unit's aggregated features: float32 [units, 1]."""
        features = _aggregated(inputs.matrix, self.over_samples)
        return units.by_unit(features).norm(dim=1, keepdim=True)


def _aggregated(values: Tensor, how: str) -> Tensor:
    """[items, features] as [features]."""
    return _AGGREGATIONS[how](values)


# Sums over the first dimension are several times as fast as torch's norm and var over it.
_AGGREGATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.abs().mean(dim=0),
    "l2": lambda values: values.square().sum(dim=0).sqrt(),
    "var": lambda values: (values - values.mean(dim=0)).square().mean(dim=0),
}
