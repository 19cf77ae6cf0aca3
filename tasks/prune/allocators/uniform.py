"""The same widths in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.target import uniform_shape

if TYPE_CHECKING:
    from resprout.tasks.prune.interfaces import Bench, Request, Scores


class Uniform:
    """The same widths in every layer; scores decide only which units."""

    per_layer: ClassVar[bool] = False
    tries: ClassVar[bool] = False

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The largest uniform shape within the limit."""
        return uniform_shape(request)
