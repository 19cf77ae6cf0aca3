"""Scores of all units of a model by one criterion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import Kind, anatomy
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import Criterion
from resprout.tasks.prune.statistics import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score(
    model: PreTrainedModel,
    criterion: Criterion,
    kinds: tuple[Kind, ...],
    input_ids: Tensor,
    progress: Progress = silent,
) -> list[dict[Kind, Tensor]]:
    """For each layer and kind float32 [units, features per unit] on the CPU, higher is worth more.

    `input_ids` int64 [samples, tokens] run through the model layer by layer where the criterion is
    calibrated. A score that is not finite raises StageFailed.
    """
    scores: list[dict[Kind, Tensor]] = []
    if not criterion.calibrated:
        layers = anatomy(model).layers
        for index, layer in enumerate(layers):
            scores.append({kind: _checked(criterion.score(layer.part(kind), None), index) for kind in kinds})
            progress(index + 1, len(layers), "layers scored")
        return scores
    for step in walk(model, input_ids):
        parts = {kind: step.layer.part(kind) for kind in kinds}
        moments = {kind: Moments(part.reader.linear.in_features) for kind, part in parts.items()}
        with ExitStack() as watching:
            for kind, part in parts.items():
                watching.enter_context(watch(part.reader.linear, moments[kind].update))
            for _ in step.run():
                pass
        scores.append(
            {kind: _checked(criterion.score(part, moments[kind]), step.index) for kind, part in parts.items()}
        )
        progress(step.index + 1, step.total, "layers scored")
    return scores


def best_units(scores: Tensor, keep: int) -> list[int]:
    """Indices of the `keep` units with the highest mean score, ascending; ties go to the lower index."""
    order = scores.mean(dim=1).sort(descending=True, stable=True).indices
    return sorted(order[:keep].tolist())


def as_tensors(scores: list[dict[Kind, Tensor]]) -> Mapping[str, Tensor]:
    """The scores under names such as `layers.03.ffn`, for safetensors."""
    return {
        f"layers.{index:02d}.{kind}": values.contiguous()
        for index, by_kind in enumerate(scores)
        for kind, values in by_kind.items()
    }


def _checked(values: Tensor, layer: int) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise StageFailed(
            f"scores of layer {layer} are not finite; the model's activations overflow in this dtype: give "
            "model.dtype: bfloat16 or float32"
        )
    return values.float().cpu()
