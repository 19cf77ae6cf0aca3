"""FLAP's adaptive structure search (An et al., AAAI 2024, arXiv 2312.11983).

Scores of each layer and kind are standardised over features, (S - mean) / std, so that they compare across
layers and between attention and FFN; then all units stand in one ranking and the best are kept until the
parameters that they bring are spent (a KV group weighs as many parameters as it has, which is the paper's
compensation). The paper ranks single channels; here blocks of `round_to` channels in order of their score
stand in the ranking by their mean, so that every width is a multiple of `round_to`, and round_to = 1 is the
paper's ranking. Each layer keeps at least one block and one group, as many experts as a token goes to, and
the share `min_kept_ratio` of its units, since one ranking over all can empty a layer whose scores are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.prune.budget import rank_all, spend
from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GlobalStandardised:
    """One ranking over all layers and kinds, scores standardised in each."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = False

    min_kept_ratio: float = 0.0
    """Share of its units of each kind that every layer keeps."""

    def __post_init__(self) -> None:
        require("global_standardised", 0, 1, min_kept_ratio=self.min_kept_ratio)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow.

        A `min_kept_ratio` that does not fit the limit raises BadInput.
        """
        floors = {
            (layer, kind): self.min_kept_ratio * count
            for kind in request.kinds
            for layer, count in enumerate(request.shape.counts(kind))
        }
        blocks = rank_all(request, scores, standardised)
        return spend(request, blocks, floors, f"min_kept_ratio {self.min_kept_ratio}")


def standardised(scores: Tensor) -> Tensor:
    """Unit values after standardising over all features: float32 [units]; equal scores give zeros."""
    spread = scores.std(correction=0)
    return ((scores - scores.mean()) / spread.clamp_min(1e-30)).mean(dim=1)
