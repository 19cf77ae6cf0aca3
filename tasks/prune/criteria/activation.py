"""Activation: the size of a unit's outputs on calibration data (Minitron, arXiv 2407.14679, sec. 2.2).

The score of an FFN channel is its activation, that of a head or group the L2 norm of its output, each brought
to one number first over the tokens of a sample and then over samples: `mean` of absolute values, `l2` norm,
or `var`iance. Channels of a head are aggregated one by one and joined by the L2 norm last, as the authors'
software does (NVIDIA Model-Optimizer); where tokens and samples are both aggregated by L2, that equals the
paper's norm of each output. The paper compares the aggregations; the defaults, `mean` over tokens and `l2`
over samples, are those of the authors' software.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs
from resprout.tasks.prune.statistics import SampleAggregates


@dataclass(frozen=True)
class Activation:
    """Size of a unit's outputs, aggregated over the tokens of a sample and over samples."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    over_tokens: Literal["mean", "l2", "var"] = "mean"
    """How the tokens of a sample become one number."""
    over_samples: Literal["mean", "l2", "var"] = "l2"
    """How the numbers of all samples become one."""

    def statistic(self, features: int) -> SampleAggregates:
        """Aggregates of each sample."""
        return SampleAggregates(features, self.over_tokens)

    def score(self, units: Units, inputs: SampleAggregates) -> Tensor:
        """The L2 norm of a unit's aggregated features: float32 [units, 1]."""
        return units.by_unit(inputs.joined(self.over_samples)).norm(dim=1, keepdim=True)
