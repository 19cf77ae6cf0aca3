"""Adapt-Pruner's layer ratios: what changes its input more loses less (Pan et al., arXiv 2502.03460).

The importance of a layer is minus the cosine of its input and output, centred over the layers and divided
by the largest deviation, so that it lies between -1 and 1; layer l loses base - amplitude * I_l. The paper
measures again after every small step of pruning and training; here one measurement spends the
whole budget, and a schedule of several rounds gives the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.models.size import Shape
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.spend import given, spend_shares
from resprout.tasks.prune.target import kept_share

if TYPE_CHECKING:
    from resprout.tasks.prune.contracts import Bench, Request, Scores


@dataclass(frozen=True)
class Adaptive:
    """The uniform share, more or less by how far a layer's output is from its input."""

    per_layer: ClassVar[bool] = True
    tries: ClassVar[bool] = True

    amplitude: float = 0.02
    """Largest difference of a layer's share from the uniform one."""

    def __post_init__(self) -> None:
        require("adaptive", 0, 1, amplitude=self.amplitude)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        from resprout.tasks.prune.turns import layer_cosines

        distances = [-one.double().mean().item() for one in layer_cosines(given(bench))]
        shares = kept_shares(distances, kept_share(request), self.amplitude)
        return spend_shares(request, dict.fromkeys(request.kinds, shares))


def kept_shares(distances: list[float], base: float, amplitude: float) -> list[float]:
    """Shares base + amplitude * I_l; layers that are all alike keep `base`."""
    mean = sum(distances) / len(distances)
    largest = max(abs(distance - mean) for distance in distances)
    return [base + amplitude * (distance - mean) / (largest or 1.0) for distance in distances]
