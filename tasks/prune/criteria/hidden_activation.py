"""Activation of hidden channels (Minitron, Muralidharan et al., NeurIPS 2024, arXiv 2407.14679, eq. 2).

A hidden channel is worth what the norms give it: each norm's output in that channel, aggregated over
tokens by the L2 norm and over samples by the mean (one of the pairs of aggregations that the paper
compares), summed over the norms of a layer and, by the plan, over the layers. The last norm, which lies
in no layer, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.job import Progress
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.prune.contracts import Needs
from resprout.tasks.prune.residual import at_norms

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenActivation:
    """Mean over samples of the L2 norm over tokens of what the norms give a channel."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[tuple[Unit, ...]] = ("hidden",)

    def score_model(
        self, model: PreTrainedModel, kinds: tuple[Unit, ...], input_ids: Tensor, progress: Progress
    ) -> list[dict[Unit, Tensor]]:
        """For each layer the sum over its norms: float32 [channels, 1]."""
        parts = anatomy(model)
        hidden = parts.layers[0].shape.hidden
        scores = torch.zeros(len(parts.layers), hidden, device=model.device)

        def see(index: int, inputs: Tensor, outputs: Tensor) -> None:
            norms = torch.linalg.vector_norm(outputs, dim=1, dtype=torch.float32)
            scores[index] += norms.sum(dim=0) / len(input_ids)

        for done, total in at_norms(model, input_ids, see):
            progress(done, total, "layers scored")
        return [{"hidden": one[:, None].clone()} for one in scores]
