"""SAP's PQ index: weights that are spread out keep more (Diao et al., ICLR 2023, arXiv 2302.05601).

For the d weights w of a layer's removable units, I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q, which is 0 where
all are equally large and 1 - d^(1/q - 1/p) where one is all there is. The paper's lower bound of what must
stay is r = d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p)); the shares r / d are scaled to the budget, so
that eta, which is the same for all layers, drops out. The paper prunes until r; here the target says how
much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import BadInput
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.spend import given, spend_shares

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.configs.stages import Unit
    from resprout.tasks.prune.contracts import Bench, Request, Scores


@dataclass(frozen=True)
class PqIndex:
    """Shares by the ratio of two norms of each layer's weights; looks at no data."""

    per_layer: ClassVar[bool] = True
    tries: ClassVar[bool] = True

    p: float = 0.5
    """The smaller norm, above 0 and at most 1."""
    q: float = 1.0
    """The larger norm."""

    def __post_init__(self) -> None:
        if not 0 < self.p < self.q or self.p > 1:
            raise BadInput(f"'pq_index' has p: {self.p} and q: {self.q}; give 0 < p <= 1 and p < q")

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        import torch

        from resprout.tasks.models.anatomy import anatomy

        layers = anatomy(given(bench).model).layers
        shares: dict[Unit, list[float]] = {
            kind: [
                share(torch.cat([one.flatten() for one in layer.units(kind).coupled()]), self.p, self.q)
                for layer in layers
            ]
            for kind in request.kinds
        }
        return spend_shares(request, shares)


def share(weights: Tensor, p: float, q: float) -> float:
    """(1 - I)^(p q / (q - p)) of the PQ index: between 0 and 1, 1 where all weights are equally large."""
    sizes = weights.float().abs()
    # Of the largest, so that powers neither overflow nor vanish.
    sizes = (sizes / sizes.max().clamp_min(1e-30)).double()
    ratio = sizes.pow(p).mean().pow(1 / p) / sizes.pow(q).mean().pow(1 / q).clamp_min(1e-30)
    return float(ratio.pow(p * q / (q - p)))
