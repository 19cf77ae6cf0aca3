"""Gradual pruning with regrowth (GraNet, Liu et al., NeurIPS 2021, arXiv 2106.10404).

Sizes follow the cubic of Zhu and Gupta (arXiv 1710.01878). At each round a further share of what is kept
goes, the lowest-scored, and as many units come back: of all removed units those whose reader has the largest
gradient (the paper's zero-cost neuroregeneration). What was removed comes back with zero columns, from which
it trains; what goes and comes back in one round keeps its own. The share falls along half a cosine over all
of training, as the prune rate of the authors' code (VITA-Group/GraNet) does, which ends at 0.005 in place of
0. There regrowth goes on to the end of training; here the last round cuts the structure and regrows nothing.
The paper works on single weights; here on units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from resprout.tasks.prune.interfaces import Kinds, Round, require
from resprout.tasks.prune.rounds import gradual


@dataclass(frozen=True)
class PruneAndRegrow:
    """Units go along a cubic; each round some of the kept give way to removed ones with large gradients."""

    trains: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    rounds: int = 4
    """Prunings, at least 2."""
    begin: float = 0.0
    """Share of training before sizes begin to fall (t0); the first round follows a step later."""
    end: float = 0.7
    """Share of training before the last round."""
    regrow: float = 0.5
    """Share of the kept units that gives way, before the cosine."""

    def __post_init__(self) -> None:
        require("prune_and_regrow", 0, 1, regrow=self.regrow)

    def all(self) -> list[Round]:
        """Rounds evenly spaced, the first a step after `begin`; the last, at `end`, regrows nothing."""
        spaced = gradual("prune_and_regrow", self.rounds, self.begin, self.end)

        def left(train: float) -> float:
            return self.regrow * (1 + math.cos(math.pi * train)) / 2

        return [*(replace(one, regrow=left(one.train)) for one in spaced[:-1]), spaced[-1]]
