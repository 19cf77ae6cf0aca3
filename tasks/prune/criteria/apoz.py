"""APoZ: how rarely a channel is zero (average percentage of zeros, Hu et al., arXiv 1607.03250, eq. 1).

The paper counts the zeros of a ReLU. Channels behind SiLU or GELU are hardly ever exactly zero, so that here
a value counts as zero where it is below `threshold` times the root mean square of all channels at its token;
behind a ReLU that gives the paper's number but for values that are tiny.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs, require


class _Nonzeros:
    """Tokens at which each feature stands out from zero: int64 [features]."""

    light: ClassVar[bool] = True

    def __init__(self, features: int, threshold: float) -> None:
        self.threshold, self.tokens = threshold, 0
        self.count = torch.zeros(features, dtype=torch.int64)

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features], or [tokens, features]."""
        values = inputs.flatten(0, -2).float()
        size = values.square().mean(dim=1, keepdim=True).sqrt()
        self.count = self.count.to(values.device) + (values.abs() > self.threshold * size).sum(dim=0)
        self.tokens += len(values)


@dataclass(frozen=True)
class Apoz:
    """Share of tokens at which a channel is not near zero."""

    needs: ClassVar[Needs] = "inputs"
    units: ClassVar[Kinds] = ("ffn",)

    threshold: float = 0.1
    """Threshold of zero, as a share of the token's root mean square over the channels."""

    def __post_init__(self) -> None:
        require("apoz", 0.0, threshold=self.threshold)

    def statistic(self, features: int) -> _Nonzeros:
        """Counts for each channel."""
        return _Nonzeros(features, self.threshold)

    def score(self, units: Units, inputs: _Nonzeros) -> Tensor:
        """1 - APoZ of each channel: float32 [units, 1]."""
        return units.by_unit(inputs.count.float() / max(1, inputs.tokens))
