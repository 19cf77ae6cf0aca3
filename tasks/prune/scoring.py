"""Scoring of units by a criterion: by weights, by inputs, by gradients, or by a run of the whole model.

With gradients, one forward and one backward pass run batch by batch; each weight's gradient of the causal-LM
loss goes to the criterion's statistics the moment it is there and is freed, so that at no time the gradients
of a whole model exist. Only weights that a criterion asks for are differentiated. A share of the layers costs
the whole forward pass and the backward pass down to its first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.presets import Unit
from resprout.tasks.core.job import WHOLE, Progress, Share, silent
from resprout.tasks.models.anatomy import Layer, anatomy, is_offloaded
from resprout.tasks.models.forward import BATCH_TOKENS, call_layer, run_batches, run_layerwise, watch
from resprout.tasks.prune.interfaces import (
    Criterion,
    GeneralCriterion,
    GradientStatistic,
    Kinds,
    LayerScores,
    Model,
    Needs,
)

if TYPE_CHECKING:
    Engine = Callable[[Model, Any, Kinds, Tensor, Progress, range], Iterator[dict[Unit, Tensor]]]
    """Scores of the layers in a range, by kind: float32 [units, features per unit]."""

OVERFLOW = (
    "the model's activations or gradients overflow in this dtype: give model.dtype: bfloat16 or float32"
)
NO_GRADIENTS = "a criterion that needs no gradients (resprout methods)"


def score_units(
    model: Model,
    criterion: Criterion,
    kinds: Kinds,
    input_ids: Tensor,
    progress: Progress = silent,
    share: Share = WHOLE,
    general: Tensor | None = None,
) -> LayerScores:
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
    model: Model, criterion: Any, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
) -> Iterator[dict[Unit, Tensor]]:
    layers = anatomy(model).layers
    for index in mine:
        with layers[index].loaded():
            yield {kind: criterion.score(layers[index].units(kind)) for kind in kinds}
        progress(index + 1, mine.stop, "layers scored")


def _by_inputs(
    model: Model, criterion: Any, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
) -> Iterator[dict[Unit, Tensor]]:
    layers = anatomy(model).layers
    if getattr(criterion.statistic(1), "light", False) and not is_offloaded(model):
        # What is seen in all layers fits, and states that no other batch comes between are still at hand.
        with ExitStack() as watching:
            seen = [_watched(layers[index], criterion, kinds, input_ids, watching) for index in mine]
            for done, total in run_batches(model, input_ids, [layer.module for layer in layers[: mine.stop]]):
                progress(done, total, "batches seen")
        for index, one in zip(mine, seen, strict=True):
            yield {kind: criterion.score(layers[index].units(kind), one[kind]) for kind in kinds}
        return
    for step in run_layerwise(model, input_ids, only=mine):
        with ExitStack() as watching:
            one = _watched(step.layer, criterion, kinds, input_ids, watching)
            step.run_all()
        yield {kind: criterion.score(step.layer.units(kind), one[kind]) for kind in kinds}
        progress(step.index + 1, mine.stop, "layers scored")


def _watched(
    layer: Layer, criterion: Any, kinds: Kinds, input_ids: Tensor, watching: ExitStack
) -> dict[Unit, Any]:
    """Collectors of what the layer's readers are given while `watching` is open."""
    seen = {kind: criterion.statistic(layer.units(kind).weight.shape[1]) for kind in kinds}
    for kind, one in seen.items():
        watching.enter_context(watch(layer.reader(kind), one.update, input_ids.shape[1]))
    return seen


def _by_model(
    model: Model, criterion: Any, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
) -> Iterator[dict[Unit, Tensor]]:
    # It cannot score a share alone, so each share costs as much as the whole.
    yield from criterion.score_model(model, kinds, input_ids, progress)[mine.start : mine.stop]


def by_gradients(
    model: Model, criterion: Any, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
) -> Iterator[dict[Unit, Tensor]]:
    """Scores of the layers `mine`, by kind: float32 [units, features per unit].

    The loss is the mean over all predicted tokens. The model is left as it was, gradients and modes too.
    Calibration samples of one token, or a model that does not fit with its activations, raise BadInput; a
    loss that is not finite raises StageFailed.
    """
    check_samples(input_ids)
    layers = anatomy(model).layers[mine.start : mine.stop]
    units = [{kind: layer.units(kind) for kind in kinds} for layer in layers]
    sums = [{kind: criterion.gradients(one) for kind, one in by_kind.items()} for by_kind in units]
    inputs = [
        {
            kind: None if one.part.reader is None else criterion.statistic(one.weight.shape[1])
            for kind, one in by_kind.items()
        }
        for by_kind in units
    ]
    wanted = [_wanted(layer, by_kind.values()) for layer, by_kind in zip(layers, sums, strict=True)]
    held = sum(4 * one.elements for by_kind in sums for one in by_kind.values())
    # One gradient at a time, with the copies in float32 that statistics make of it.
    largest = max(one.nbytes + 3 * 4 * one.numel() for each in wanted for one, _ in each.values())
    check_memory(model, input_ids, len(anatomy(model).layers) - mine.start, held + largest)

    share = [0.0]
    batches = input_ids.split(rows_of_batch(input_ids))
    with differentiable(model, [one for each in wanted for one, _ in each.values()]), ExitStack() as hooks:
        for layer, parameters, seen in zip(layers, wanted, inputs, strict=True):
            for name, (parameter, statistics) in parameters.items():
                hooks.enter_context(_handed_on(name, parameter, statistics, share))
            for kind, statistic in seen.items():
                if statistic is not None:
                    hooks.enter_context(watch(layer.reader(kind), statistic.update, input_ids.shape[1]))
        for index, ids in enumerate(batches):
            share[0] = len(ids) / len(input_ids)
            causal_loss(model, ids).backward()
            progress(index + 1, len(batches), "batches differentiated")
    for by_kind, gathered, seen in zip(units, sums, inputs, strict=True):
        yield {kind: criterion.score(one, gathered[kind], seen[kind]) for kind, one in by_kind.items()}


def causal_loss(model: Model, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the next token over `ids` [rows, tokens]; not finite raises StageFailed."""
    ids = ids.to(model.device)
    run: Any = model
    loss: Tensor = run(input_ids=ids, labels=ids, use_cache=False).loss
    if not bool(torch.isfinite(loss)):
        raise StageFailed(f"the loss over the calibration tokens is not finite; {OVERFLOW}")
    return loss


def rows_of_batch(input_ids: Tensor) -> int:
    """Samples that run at a time."""
    return max(1, BATCH_TOKENS // input_ids.shape[1])


def check_samples(input_ids: Tensor) -> None:
    """Raise BadInput unless every sample has a token to predict."""
    if input_ids.dim() != 2 or len(input_ids) == 0 or input_ids.shape[1] < 2:
        raise BadInput(
            f"input_ids has shape {list(input_ids.shape)}, which predicts no token; give [samples, tokens] "
            "with at least 2 tokens"
        )


def check_memory(
    model: Model, input_ids: Tensor, layers: int, beside: int, instead: str = NO_GRADIENTS
) -> None:
    """Raise BadInput where the passes need more memory than is free.

    `layers` is how many layers keep activations, `beside` the bytes of gradients and statistics, `instead`
    what may be given that needs none.
    """
    needed = needed_bytes(model, input_ids, layers) + beside
    free = available_bytes(model.device)
    if needed > free:
        raise BadInput(
            f"gradients of this model need about {needed / 1e9:.1f} GB beside its weights for batches of "
            f"{rows_of_batch(input_ids) * input_ids.shape[1]} tokens, and {free / 1e9:.1f} GB are free; give "
            f"shorter calibration samples, more memory, or {instead}"
        )


def available_bytes(device: torch.device) -> int:
    """Memory of the device that is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def needed_bytes(model: Model, input_ids: Tensor, layers: int) -> int:
    """Bytes of activations and logits that one batch keeps for its backward pass.

    The widest layer runs once, and what autograd saves of it is counted: right for every family and attention
    kernel, and as cheap as one layer of one batch.
    """
    ids = input_ids[: rows_of_batch(input_ids)]
    step = next(run_layerwise(model, ids, ids.numel()))
    modules = [layer.module for layer in anatomy(model).layers]
    module = max(modules, key=lambda one: sum(parameter.numel() for parameter in one.parameters()))
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: an output that its own node holds is never freed.
        return tensor.detach()

    hidden = step.hidden[0].detach().requires_grad_()
    with differentiable(model, list(module.parameters())), saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call_layer(module, hidden, step.calls[0])
    del output
    logits = ids.numel() * model.config.get_text_config().vocab_size
    # Logits, and in float32 their copy, their log-softmax and its gradient.
    return layers * sum(saved.values()) + logits * (model.dtype.itemsize + 3 * 4)


@contextmanager
def differentiable(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only `parameters` require gradients and the model is in eval mode while the context is open.

    Afterwards all gradients, flags and modes are as they were.
    """
    before = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for one, _, _ in before:
            one.requires_grad_(False)
            one.grad = None
        for one in parameters:
            one.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for one, required, gradient in before:
            one.requires_grad_(required)
            one.grad = gradient
        for module, mode in modes:
            module.training = mode


def _wanted(
    layer: Layer, statistics: Iterable[GradientStatistic]
) -> Mapping[str, tuple[nn.Parameter, list[GradientStatistic]]]:
    """By name from the layer on: a weight, and the statistics that its gradient goes to."""
    found: dict[str, tuple[nn.Parameter, list[GradientStatistic]]] = {}
    for statistic in statistics:
        for name in statistic.names:
            found.setdefault(name, (layer.module.get_parameter(name), []))[1].append(statistic)
    return found


@contextmanager
def _handed_on(
    name: str, parameter: nn.Parameter, statistics: Sequence[GradientStatistic], share: list[float]
) -> Iterator[None]:
    """Give each gradient of `parameter` to the statistics and free it, while the context is open."""

    def hook(given: Tensor) -> None:
        gradient, given.grad = given.grad, None
        if gradient is not None:
            for statistic in statistics:
                statistic.update(name, gradient, share[0])

    handle = parameter.register_post_accumulate_grad_hook(hook)
    try:
        yield
    finally:
        handle.remove()


ENGINES: Mapping[Needs, Engine] = {
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


def as_tensors(scores: LayerScores, first: int = 0) -> Mapping[str, Tensor]:
    """The scores under names such as `layers.03.ffn`, for safetensors; `first` is the first one's layer."""
    return {
        f"layers.{index:02d}.{kind}": values.contiguous()
        for index, by_kind in enumerate(scores, first)
        for kind, values in by_kind.items()
    }


def from_tensors(tensors: Mapping[str, Tensor], kinds: Kinds) -> LayerScores:
    """The scores that `as_tensors` named, layer by layer from the first."""
    layers = len(tensors) // len(kinds)
    return [{kind: tensors[f"layers.{index:02d}.{kind}"] for kind in kinds} for index in range(layers)]


def _checked(values: Tensor, layer: Layer, kind: Unit) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        with layer.loaded():
            tensors = layer.tensors.items()
            broken = [name for name, one in tensors if not bool(torch.isfinite(one).all())]
        raise StageFailed(
            f"scores of {kind} in layer {layer.index} are not finite; "
            + (f"neither is {broken[0]} of that layer: take weights that are whole" if broken else OVERFLOW)
        )
    return values.float().cpu()
