"""Principal directions of the residual stream in place of hidden channels (SliceGPT, arXiv 2401.15024).

Unit i of `hidden` is the i-th strongest direction of the residual stream, and its score the stream's
second moment along it (an eigenvalue). What is kept are directions, not channels, so that only a repair
which turns the stream to them (`rotation`) goes with it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs
from resprout.tasks.prune.residual_stream import principal_directions


class Principal:
    """Second moment of the residual stream along each of its principal directions."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("hidden",)
    basis: ClassVar[str] = "directions"

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """The same for each layer: float32 [directions, 1], falling."""
        values = principal_directions(model, input_ids, progress)[0]
        return [{"hidden": values[:, None].clone()} for _ in anatomy(model).layers]
