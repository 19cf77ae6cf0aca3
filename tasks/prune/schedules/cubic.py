"""Gradual pruning along a cubic (Zhu and Gupta, 2017, arXiv 1710.01878).

Eq. 1 of the paper: the sparsity is s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3, which is s_i at t0. Here s_i
is 0 and the size takes the place of the sparsity: round i of n comes i / n of the way from `begin` to `end`
of training and goes 1 - (1 - i / n)^3 of the way to the target, so that much goes early, while the model has
room, and little late. The paper prunes single weights by size; here
units go by the criterion. Removed units stay removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.interfaces import Kinds, Round
from resprout.tasks.prune.rounds import gradual


@dataclass(frozen=True)
class Cubic:
    """Many units go in the first rounds and few in the last, with training between them."""

    trains: ClassVar[bool] = False
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "layers", "sublayers")

    rounds: int = 4
    """Prunings, at least 2."""
    begin: float = 0.0
    """Share of training before sizes begin to fall (t0); the first round follows a step later."""
    end: float = 0.75
    """Share of training before the last round."""

    def all(self) -> list[Round]:
        """Rounds evenly spaced, the first a step after `begin`, the last at `end`."""
        return gradual("cubic", self.rounds, self.begin, self.end)
