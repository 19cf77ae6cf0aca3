"""Forward passes over calibration tokens, layer by layer: one layer's activations are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Anatomy, Layer, anatomy, is_offloaded
from resprout.tasks.models.modeling_resprout import first_output
from resprout.tasks.models.offload import ActivationOffload
from resprout.tasks.models.shape import Model

BATCH_TOKENS = 2048
"""Tokens in a forward pass over calibration data; larger batches are no faster on a CPU."""
ACTIVATION_BYTES = 2**28
"""Hidden states kept in memory where the model's layers are read one at a time."""

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a decoder layer beside the hidden states: masks, rotations."""


def call_layer(layer: nn.Module, hidden: Tensor, call: LayerCall) -> Tensor:
    """Hidden states [rows, tokens, hidden] behind a layer that is given `hidden`."""
    more, arguments = call
    return first_output(layer(hidden, *more, **arguments))


@dataclass
class LayerStep:
    """One layer of a layerwise pass; `hidden` are its inputs, batch by batch [rows, tokens, hidden size]."""

    index: int
    total: int
    layer: Layer
    hidden: ActivationOffload
    calls: list[LayerCall]
    """The layer's other arguments, by batch."""
    ran: bool = False

    @torch.no_grad()
    def dry_run(self) -> None:
        """Run every batch through the layer for those who watch it; the outputs go nowhere."""
        for i, call in enumerate(self.calls):
            call_layer(self.layer.module, self.hidden[i], call)

    def run(self) -> Iterator[Tensor]:
        """Run every batch through the layer, yielding its outputs, which become the next layer's inputs."""
        self.ran = True
        for i, call in enumerate(self.calls):
            with torch.no_grad():
                self.hidden[i] = call_layer(self.layer.module, self.hidden[i], call)
            yield self.hidden[i]

    def run_all(self) -> None:
        """Run every batch through the layer."""
        for _ in self.run():
            pass


def run_layerwise(
    model: Model,
    input_ids: Tensor | Sequence[Tensor],
    batch_tokens: int = BATCH_TOKENS,
    only: range | None = None,
) -> Iterator[LayerStep]:
    """Yield a step for each decoder layer in order, for `input_ids` [samples, tokens]; computes no logits.

    Rows of several lengths are given as a list of batches, each padded on the right, where nothing looks.
    Of a range `only` its layers are yielded, and none behind it is run.

    A caller watches modules (`watch`), runs the step, and may then change the layer: what follows
    sees the outputs that the layer had when it ran. A step that the caller did not run is run then.
    """
    parts = anatomy(model)
    recorders = [_Recorder() for _ in parts.layers]
    # Only where weights do not fit are the states between layers likely not to fit either.
    hidden = ActivationOffload(ACTIVATION_BYTES if is_offloaded(model) else None)
    for _ in run_batches(model, input_ids, recorders, batch_tokens):
        hidden.append(recorders[0].seen)
    only = range(len(parts.layers)) if only is None else only
    for index, layer in enumerate(parts.layers[: only.stop]):
        step = LayerStep(index, len(parts.layers), layer, hidden, recorders[index].calls)
        with layer.loaded():
            if index in only:
                yield step
            if not step.ran:
                step.run_all()


def run_batches(
    model: Model,
    input_ids: Tensor | Sequence[Tensor],
    layers: Sequence[nn.Module],
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[int, int]]:
    """Run `input_ids` [samples, tokens] batch by batch through the decoder with these layers for its own.

    Yields after each batch how many of how many are done. `run_layerwise` gives the layers the same batches.
    """
    batches = _batches(input_ids, batch_tokens) if isinstance(input_ids, Tensor) else input_ids
    parts = anatomy(model)
    for done, ids in enumerate(batches, 1):
        with torch.no_grad(), layers_replaced(parts, layers):
            parts.decoder(input_ids=ids.to(model.device), use_cache=False)
        yield done, len(batches)


def _batches(input_ids: Tensor, batch_tokens: int) -> Sequence[Tensor]:
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise BadInput(
            f"input_ids has shape {list(input_ids.shape)}; give [samples, tokens], both at least 1"
        )
    return input_ids.split(max(1, batch_tokens // input_ids.shape[1]))


class LayerStack:
    """Layers of a model with what calibration tokens bring to them, made by one forward pass.

    `start` are the first layer's inputs, batch by batch [rows, tokens, hidden], all in memory; `calls` are
    what each layer is given beside them, by layer and batch.
    """

    def __init__(self, model: Model, input_ids: Tensor, batch_tokens: int = BATCH_TOKENS) -> None:
        self.layers: list[Any] = [layer.module for layer in anatomy(model).layers]
        self.start: list[Tensor] = []
        self.calls: list[list[LayerCall]] = []
        for step in run_layerwise(model, input_ids, batch_tokens):
            self.start = self.start or list(step.hidden)
            self.calls.append(step.calls)

    def run(self, members: Sequence[int], batch: int, hidden: Tensor) -> Tensor:
        """Hidden states of a batch behind these layers, one after another."""
        for layer in members:
            hidden = call_layer(self.layers[layer], hidden, self.calls[layer][batch])
        return hidden


@contextmanager
def watch(module: nn.Module, see: Callable[[Tensor], None], row_tokens: int | None = None) -> Iterator[None]:
    """Call `see` with every input of `module` while the context is open.

    It is a view as [tokens, features], or as [rows, row_tokens, features] where `row_tokens` is given: some
    families flatten rows and tokens in front of their modules, so that rows must be given.
    """

    def hook(watched: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Detached: what is kept of it must not keep the graph of a differentiated pass.
        flat = inputs[0].detach().flatten(0, -2)
        see(flat if row_tokens is None else flat.unflatten(0, (-1, row_tokens)))

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Recorder(nn.Module):
    """Stands in for a decoder layer: passes its input on and keeps what the decoder gave it, by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []
        self.seen: Tensor = torch.empty(0)

    def forward(self, hidden_states: Tensor, *more: Any, **arguments: Any) -> Tensor:
        self.seen = hidden_states
        given = (more, arguments)
        # Masks and rotations of equal batches are equal, and one of each is enough.
        self.calls.append(self.calls[-1] if self.calls and _equal(self.calls[-1], given) else given)
        return hidden_states


@contextmanager
def layers_replaced(parts: Anatomy, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    """Let the decoder run these modules in place of its layers, as many as it has."""
    name = parts.family.layers
    layers = getattr(parts.decoder, name)
    setattr(parts.decoder, name, nn.ModuleList(stand_ins))
    try:
        yield
    finally:
        setattr(parts.decoder, name, layers)


def _equal(first: Any, second: Any) -> bool:
    """Whether two nests of tuples, dicts and tensors hold the same."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or (first.shape == second.shape and torch.equal(first, second))
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    return first is second or (type(first) is type(second) is not Tensor and bool(first == second))
