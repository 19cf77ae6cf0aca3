"""SparseGPT: what stays makes good for what goes (Frantar and Alistarh, ICML 2023, arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.semi_structured.masks import Pattern
from resprout.tasks.prune.semi_structured.sparsegpt import solve
from resprout.tasks.prune.statistics import Gram


@dataclass(frozen=True)
class SparseGPT:
    """Masks by the inverse Hessian of the inputs, the weights that stay adjusted."""

    needs: ClassVar[str] = "inputs"

    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""

    def __post_init__(self) -> None:
        require("sparsegpt", 0, damping=self.damping)

    def statistic(self, features: int) -> Gram:
        """Gram matrix of the inputs."""
        return Gram(features)

    def sparse(self, weight: Tensor, inputs: Gram, pattern: Pattern) -> Tensor:
        """The weight [outputs, inputs] with the pattern's zeros; a singular Hessian raises StageFailed."""
        return solve(weight, inputs, pattern, self.damping)
