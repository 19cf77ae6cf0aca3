"""Activation of hidden channels (Minitron, Muralidharan et al., NeurIPS 2024, arXiv 2407.14679, eq. 2).

A hidden channel is worth what the norms give it: each norm's output in that channel, aggregated first over
the tokens of a sample and then over samples, summed over the norms of a layer and, by the plan, over layers.
The paper compares the aggregations; the defaults are those of the authors' software (NVIDIA Model-Optimizer):
the mean of absolute values over tokens, the L2 norm over samples. The last norm, which is in no layer, is
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs
from resprout.tasks.prune.residual_stream import at_norms
from resprout.tasks.prune.statistics import SampleAggregates


@dataclass(frozen=True)
class HiddenActivation:
    """Size of what the norms give a channel, aggregated over the tokens of a sample and over samples."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("hidden",)

    over_tokens: Literal["mean", "l2", "var"] = "mean"
    """How the tokens of a sample become one number."""
    over_samples: Literal["mean", "l2", "var"] = "l2"
    """How the numbers of all samples become one."""

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """For each layer the sum over its norms: float32 [channels, 1]."""
        parts = anatomy(model)
        hidden = parts.layers[0].shape.hidden
        seen: list[dict[int, SampleAggregates]] = [{} for _ in parts.layers]

        def see(index: int, norm: int, inputs: Tensor, outputs: Tensor) -> None:
            seen[index].setdefault(norm, SampleAggregates(hidden, self.over_tokens)).update(outputs)

        for done, total in at_norms(model, input_ids, see):
            progress(done, total, "layers scored")
        sums = [
            torch.stack([norm.joined(self.over_samples) for norm in by.values()]).sum(dim=0) for by in seen
        ]
        return [{"hidden": one[:, None].clone()} for one in sums]
