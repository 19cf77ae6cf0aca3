"""Scores of all units of a model by one criterion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.configs.stages import Unit
from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import Criterion
from resprout.tasks.prune.statistics import Moments
from resprout.tasks.share import WHOLE, Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score(
    model: PreTrainedModel,
    criterion: Criterion,
    kinds: tuple[Unit, ...],
    input_ids: Tensor,
    progress: Progress = silent,
    share: Share = WHOLE,
) -> list[dict[Unit, Tensor]]:
    """For each layer of the share and kind float32 [units, features per unit] on the CPU; higher is better.

    `input_ids` int64 [samples, tokens] run through the model layer by layer where the criterion is
    calibrated, up to the last layer of the share. A score that is not finite raises StageFailed.
    """
    scores: list[dict[Unit, Tensor]] = []
    layers = anatomy(model).layers
    mine = share.of(len(layers))
    if not criterion.calibrated:
        for index in mine:
            units_of = layers[index].units
            scores.append({kind: _checked(criterion.score(units_of(kind), None), index) for kind in kinds})
            progress(index + 1, mine.stop, "layers scored")
        return scores
    for step in walk(model, input_ids) if mine else ():
        if step.index < mine.start:
            continue
        units = {kind: step.layer.units(kind) for kind in kinds}
        moments = {kind: Moments(one.weight.shape[1]) for kind, one in units.items()}
        with ExitStack() as watching:
            for kind in kinds:
                watching.enter_context(watch(step.layer.reader(kind), moments[kind].update))
            for _ in step.run():
                pass
        scores.append(
            {kind: _checked(criterion.score(one, moments[kind]), step.index) for kind, one in units.items()}
        )
        progress(step.index + 1, mine.stop, "layers scored")
        if step.index == mine[-1]:
            break
    return scores


def best_units(scores: Tensor, keep: int, blocks: int = 1) -> list[int]:
    """Indices of the `keep` units of each block with the highest mean score, ascending.

    The units [units, features per unit] lie in `blocks` blocks of equal size; ties go to the lower index.
    """
    means = scores.mean(dim=1).view(blocks, -1)
    best = means.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    first = torch.arange(blocks).view(-1, 1) * means.shape[1]
    return sorted((best + first).flatten().tolist())


def as_tensors(scores: list[dict[Unit, Tensor]], first: int = 0) -> Mapping[str, Tensor]:
    """The scores under names such as `layers.03.ffn`, for safetensors; `first` is the first one's layer."""
    return {
        f"layers.{index:02d}.{kind}": values.contiguous()
        for index, by_kind in enumerate(scores, first)
        for kind, values in by_kind.items()
    }


def from_tensors(tensors: Mapping[str, Tensor], kinds: tuple[Unit, ...]) -> list[dict[Unit, Tensor]]:
    """What `as_tensors` named, layer by layer from the first."""
    layers = len(tensors) // len(kinds)
    return [{kind: tensors[f"layers.{index:02d}.{kind}"] for kind in kinds} for index in range(layers)]


def _checked(values: Tensor, layer: int) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise StageFailed(
            f"scores of layer {layer} are not finite; the model's activations overflow in this dtype: give "
            "model.dtype: bfloat16 or float32"
        )
    return values.float().cpu()
