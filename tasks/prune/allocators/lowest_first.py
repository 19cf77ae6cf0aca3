"""The lowest-scored layers or sublayers go until the limit is met (ShortGPT, Men et al., arXiv 2403.03853).

Sublayers differ in size, so the last one to go may save more than was needed: of those removed the
best-scored that still fit come back. One layer always stays, and so does the attention by which caches
measure their length (tasks/models/shape.py).
"""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.models.shape import DepthUnit, Shape, caches_work, depth_units, without
from resprout.tasks.prune.interfaces import Bench, Kinds, Request, Scores


class LowestFirst:
    """Whole layers or sublayers in the order of their scores, the lowest first."""

    per_layer: ClassVar[bool] = False
    runs_model: ClassVar[bool] = False
    units: ClassVar[Kinds] = ("layers", "sublayers")

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The request's shape with widths of 0 where something went; of equal scores the later one goes."""
        (kind,) = request.kinds

        def worth(block: DepthUnit) -> tuple[float, int, int]:
            return scores[block.layer][kind][block.row].mean().item(), -block.layer, -block.row

        removed: list[DepthUnit] = []
        for block in sorted(depth_units(request.shape, kind), key=worth):
            if without(request.shape, removed).params <= request.limit:
                break
            if caches_work(without(request.shape, [*removed, block])):
                removed.append(block)
        for block in sorted(removed, key=worth, reverse=True):
            fewer = [one for one in removed if one is not block]
            back = without(request.shape, fewer)
            if back.params <= request.limit and caches_work(back):
                removed = fewer
        return without(request.shape, removed)
