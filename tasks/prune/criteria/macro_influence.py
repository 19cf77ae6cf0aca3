"""Macro Influence: what a layer's removal does to the last hidden states (FuseGPT, arXiv 2411.14507).

MI_i = 1 - E[cos(x_L, x_L without i)] over calibration tokens, x_L the residual stream behind the last layer
of the uncut model. The authors remove (and fuse) the layer of least influence, measure all others again, and
so on (JarvisPei/FuseGPT, `--iterative`); here the order of removal comes first and the fusion after it, so
that influences are those of the model with layers removed and not yet fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from resprout.tasks.core.job import Progress
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs, require
from resprout.tasks.prune.search import last_stream, removal_ranks


@dataclass(frozen=True)
class MacroInfluence:
    """The order in which removal, one at a time, turns the last hidden states least."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("layers", "sublayers")

    removed_ratio: float = 0.25
    """Share of the units that are removed one at a time; 0 measures all of them once."""
    calibration_tokens: int = 2048
    """About this many calibration tokens are used: whole samples from the first, at least one."""

    def __post_init__(self) -> None:
        require("macro_influence", 0, 1, removed_ratio=self.removed_ratio)
        require("macro_influence", 1, calibration_tokens=self.calibration_tokens)

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """Float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers: ranks of removal."""
        (kind,) = kinds
        samples = input_ids[: max(1, self.calibration_tokens // input_ids.shape[1])]
        return removal_ranks(model, kind, samples, self.removed_ratio, last_stream, _turn, progress)


def _turn(a: Tensor, b: Tensor) -> Tensor:
    return 1 - cosine_similarity(a, b, dim=-1)
