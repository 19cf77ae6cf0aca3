"""The same widths in every layer."""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.prune.interfaces import Bench, Request, Scores, Shape
from resprout.tasks.prune.target import uniform_shape


class Uniform:
    """The same widths in every layer; scores decide only which units."""

    per_layer: ClassVar[bool] = False
    runs_model: ClassVar[bool] = False

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The largest uniform shape within the limit."""
        return uniform_shape(request)
