"""Pruning in the middle of training (Jin et al., ICLR 2025, arXiv 2501.12486).

Of 80 schedules of sparse pre-training the paper finds one near the best that begins at 25 % of the compute
and ends at 75 %: dense training, gradual pruning, then training of the small model. In between sizes follow
the cubic of Zhu and Gupta (arXiv 1710.01878). The paper prunes single weights while it trains from scratch;
here units go, and shares are of the recovery's tokens. Removed units stay removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.interfaces import Kinds, Round
from resprout.tasks.prune.rounds import gradual


@dataclass(frozen=True)
class MidTraining:
    """The dense model trains first, units go in the middle half of training, the small model trains on."""

    trains: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "layers", "sublayers")

    rounds: int = 4
    """Prunings, at least 2."""
    begin: float = 0.25
    """Share of training before sizes begin to fall (t0); the first round follows a step later."""
    end: float = 0.75
    """Share of training before the last round."""

    def all(self) -> list[Round]:
        """Rounds evenly spaced, the first a step after `begin`, the last at `end`."""
        return gradual("mid_training", self.rounds, self.begin, self.end)
