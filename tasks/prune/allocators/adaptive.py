"""Adapt-Pruner's layer ratios: what changes its input more loses less (Pan et al., arXiv 2502.03460).

The importance I_l of a layer is minus the cosine of its input and output, centred over the layers and divided
by the largest deviation, so that it is between -1 and 1. A step removes of layer l the share
step - amplitude * I_l of its units, at least nothing, and in all at most 0.99.

The authors' code (research4pan/AdaptPruner, scripts of the paper) makes 50 steps of 0.02 with an amplitude of
0.02, measures after each and stops where the target is met. Here one measurement makes all steps, so that
layer l loses removed * (1 - amplitude * I_l), the amplitude being a share of the step: 1 as in the scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.budget import require_bench, spend_shares
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape, require
from resprout.tasks.prune.target import kept_share


@dataclass(frozen=True)
class Adaptive:
    """The uniform share, more or less by how far a layer's output is from its input."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True

    amplitude: float = 1.0
    """Largest difference of a layer's removed share from the uniform one, as a share of that."""

    def __post_init__(self) -> None:
        require("adaptive", 0, 1, amplitude=self.amplitude)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        from resprout.tasks.prune.residual_stream import layer_cosines

        distances = [-one.double().mean().item() for one in layer_cosines(require_bench(bench))]
        shares = kept_shares(distances, kept_share(request), self.amplitude)
        return spend_shares(request, dict.fromkeys(request.kinds, shares))


def kept_shares(distances: list[float], base: float, amplitude: float) -> list[float]:
    """1 - (1 - base)(1 - amplitude * I_l), at least 0.01; layers that are all alike keep `base`."""
    mean = sum(distances) / len(distances)
    largest = max(abs(distance - mean) for distance in distances)
    importances = [(distance - mean) / (largest or 1.0) for distance in distances]
    return [max(1 - (1 - base) * (1 - amplitude * importance), 0.01) for importance in importances]
