"""Iterative soft shrinkage by a percentage (ISS-P, Wang et al., ICCV 2023, arXiv 2303.09650).

At each step the unimportant weights are chosen again, at the target's size from the start, and multiplied by
1 - alpha instead of being removed; what recovers in training is important again. At the end the structure is
fixed and cut. The authors' code (Jiamian-Wang/Iterative-Soft-Shrinkage-SR) shrinks single weights by 5 %
after each optimizer step; here the columns that read a unit shrink once a round, so that the share is larger:
this is the form in few rounds, not the paper's in as many as there are steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from resprout.tasks.prune.interfaces import Kinds, Round, require
from resprout.tasks.prune.rounds import gradual


@dataclass(frozen=True)
class SoftShrinkage:
    """Units outside the target's size shrink round by round (the paper: step by step); the last one cuts."""

    trains: ClassVar[bool] = False
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "layers", "sublayers")

    rounds: int = 4
    """Prunings, at least 2; all but the last shrink."""
    begin: float = 0.0
    """Share of training before the steps begin, at the end of each of which one round comes."""
    end: float = 0.75
    """Share of training before the last round."""
    share: float = 0.5
    """Share that the columns which read a unit lose each round."""

    def __post_init__(self) -> None:
        require("soft_shrinkage", 0, 0.99, share=self.share)

    def all(self) -> list[Round]:
        """Rounds evenly spaced, the last at `end`, each at the target's size."""
        spaced = gradual("soft_shrinkage", self.rounds, self.begin, self.end)
        return [replace(one, done=1.0, shrink=self.share) for one in spaced]
