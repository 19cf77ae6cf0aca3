"""Scores of all units of a model by one criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.configs.stages import Unit
from resprout.tasks.core.job import WHOLE, Progress, Share, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.walk import in_pages, run, walk, watch
from resprout.tasks.prune.contracts import Criterion, GeneralCriterion, Needs
from resprout.tasks.prune.gradients import OVERFLOW, by_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_units(
    model: PreTrainedModel,
    criterion: Criterion,
    kinds: tuple[Unit, ...],
    input_ids: Tensor,
    progress: Progress = silent,
    share: Share = WHOLE,
    general: Tensor | None = None,
) -> list[dict[Unit, Tensor]]:
    """For each layer of the share and kind float32 [units, features per unit] on the CPU; higher is better.

    `input_ids` int64 [samples, tokens] run through the model where the criterion needs that, layer by layer
    up to the last of the share; criteria that need gradients or the model run all layers for every share.
    `general`, tokens of open-domain text of the same form, must be there for criteria that need them. A score
    that is not finite raises StageFailed.
    """
    layers = anatomy(model).layers
    mine = share.of(len(layers))
    if not mine:
        return []
    if isinstance(criterion, GeneralCriterion):
        if general is None:
            raise TypeError("the criterion needs tokens of open-domain text: general")
        criterion = criterion.with_general(model, kinds, general, progress, mine)
    engine = ENGINES[criterion.needs]
    return [
        {kind: _checked(one, layers[index], kind) for kind, one in by_kind.items()}
        for index, by_kind in zip(
            mine, engine(model, criterion, kinds, input_ids, progress, mine), strict=True
        )
    ]


def _by_weights(
    model: PreTrainedModel,
    criterion: Any,
    kinds: tuple[Unit, ...],
    input_ids: Tensor,
    progress: Progress,
    mine: range,
) -> Iterator[dict[Unit, Tensor]]:
    layers = anatomy(model).layers
    for index in mine:
        with layers[index].present():
            yield {kind: criterion.score(layers[index].units(kind)) for kind in kinds}
        progress(index + 1, mine.stop, "layers scored")


def _by_inputs(
    model: PreTrainedModel,
    criterion: Any,
    kinds: tuple[Unit, ...],
    input_ids: Tensor,
    progress: Progress,
    mine: range,
) -> Iterator[dict[Unit, Tensor]]:
    layers = anatomy(model).layers
    if getattr(criterion.statistic(1), "light", False) and not in_pages(model):
        # What is seen in all layers fits, and states that no other batch comes between are still at hand.
        with ExitStack() as watching:
            seen = [_watched(layers[index], criterion, kinds, input_ids, watching) for index in mine]
            for done, total in run(model, input_ids, [layer.module for layer in layers[: mine.stop]]):
                progress(done, total, "batches seen")
        for index, one in zip(mine, seen, strict=True):
            yield {kind: criterion.score(layers[index].units(kind), one[kind]) for kind in kinds}
        return
    for step in walk(model, input_ids):
        if step.index < mine.start:
            continue
        with ExitStack() as watching:
            one = _watched(step.layer, criterion, kinds, input_ids, watching)
            for _ in step.run():
                pass
        yield {kind: criterion.score(step.layer.units(kind), one[kind]) for kind in kinds}
        progress(step.index + 1, mine.stop, "layers scored")
        if step.index == mine[-1]:
            break


def _watched(
    layer: Layer, criterion: Any, kinds: tuple[Unit, ...], input_ids: Tensor, watching: ExitStack
) -> dict[Unit, Any]:
    """Collectors of what the layer's readers are given while `watching` is open."""
    seen = {kind: criterion.statistic(layer.units(kind).weight.shape[1]) for kind in kinds}
    for kind, one in seen.items():
        watching.enter_context(watch(layer.reader(kind), one.update, input_ids.shape[1]))
    return seen


def _by_model(
    model: PreTrainedModel,
    criterion: Any,
    kinds: tuple[Unit, ...],
    input_ids: Tensor,
    progress: Progress,
    mine: range,
) -> Iterator[dict[Unit, Tensor]]:
    # It cannot score a share alone, so each share costs as much as the whole.
    yield from criterion.score_model(model, kinds, input_ids, progress)[mine.start : mine.stop]


ENGINES: Mapping[Needs, Callable[..., Iterator[dict[Unit, Tensor]]]] = {
    "weights": _by_weights,
    "inputs": _by_inputs,
    "gradients": by_gradients,
    "model": _by_model,
}


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


def _checked(values: Tensor, layer: Layer, kind: Unit) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        with layer.present():
            tensors = layer.tensors.items()
            broken = [name for name, one in tensors if not bool(torch.isfinite(one).all())]
        raise StageFailed(
            f"scores of {kind} in layer {layer.index} are not finite; "
            + (f"neither is {broken[0]} of that layer: take weights that are whole" if broken else OVERFLOW)
        )
    return values.float().cpu()
