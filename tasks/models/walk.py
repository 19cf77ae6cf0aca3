"""Calibration tokens through a decoder one layer at a time, so that one layer's activations are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import PAGES, Anatomy, Layer, anatomy
from resprout.tasks.models.spool import Spool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 2048
"""Tokens in a forward pass over calibration data; larger batches are no faster on a CPU."""
SPOOL_BYTES = 2**28
"""Hidden states that a walk keeps in memory where the model's layers are read one at a time."""


@dataclass
class Step:
    """One layer of a walk; `hidden` holds the layer's inputs, batch by batch: [rows, tokens, hidden size]."""

    index: int
    total: int
    layer: Layer
    hidden: Spool
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    ran: bool = False

    def rehearse(self) -> None:
        """Run every batch through the layer for those who watch it; what follows sees nothing of that."""
        for i, (more, arguments) in enumerate(self.arguments):
            with torch.no_grad():
                self.layer.module(self.hidden[i], *more, **arguments)

    def run(self) -> Iterator[Tensor]:
        """Run every batch through the layer, yielding its outputs, which become the next layer's inputs."""
        self.ran = True
        for i, (more, arguments) in enumerate(self.arguments):
            with torch.no_grad():
                output = self.layer.module(self.hidden[i], *more, **arguments)
            self.hidden[i] = output if isinstance(output, Tensor) else output[0]
            yield self.hidden[i]


def walk(model: PreTrainedModel, input_ids: Tensor, batch_tokens: int = BATCH_TOKENS) -> Iterator[Step]:
    """Yield a Step for each decoder layer in order, for `input_ids` [samples, tokens]; computes no logits.

    A caller watches modules (`watch`), consumes `step.run()`, and may then change the layer: what follows
    sees the outputs that the layer had when it ran. A step that the caller did not run is run then.
    """
    parts = anatomy(model)
    recorders = [_Recorder() for _ in parts.layers]
    # Only where weights do not fit are the states between layers likely not to fit either.
    hidden = Spool(SPOOL_BYTES if in_pages(model) else None)
    for _ in run(model, input_ids, recorders, batch_tokens):
        hidden.append(recorders[0].seen)
    for index, layer in enumerate(parts.layers):
        step = Step(index, len(parts.layers), layer, hidden, recorders[index].arguments)
        with layer.present():
            yield step
            if not step.ran:
                for _ in step.run():
                    pass


def run(
    model: PreTrainedModel, input_ids: Tensor, layers: Sequence[nn.Module], batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, int]]:
    """Run `input_ids` [samples, tokens] batch by batch through the decoder with these layers for its own.

    Yields after each batch how many of how many are done. `walk` gives the layers the same batches.
    """
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise BadInput(
            f"input_ids has shape {list(input_ids.shape)}; give [samples, tokens], both at least 1"
        )
    parts = anatomy(model)
    batches = input_ids.split(max(1, batch_tokens // input_ids.shape[1]))
    for done, ids in enumerate(batches, 1):
        with torch.no_grad(), layers_replaced(parts, layers):
            parts.decoder(input_ids=ids.to(model.device), use_cache=False)
        yield done, len(batches)


def in_pages(model: PreTrainedModel) -> bool:
    """Whether the model's layers are read one at a time."""
    return getattr(model, PAGES, None) is not None


@contextmanager
def watch(module: nn.Module, see: Callable[[Tensor], None], row_tokens: int | None = None) -> Iterator[None]:
    """Call `see` with every input of `module` while the context is open.

    It is a view as [tokens, features], or as [rows, row_tokens, features] where `row_tokens` is given: some
    families flatten rows and tokens in front of their modules, so that rows must be told.
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
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.seen: Tensor = torch.empty(0)

    def forward(self, hidden_states: Tensor, *more: Any, **arguments: Any) -> Tensor:
        self.seen = hidden_states
        given = (more, arguments)
        # Masks and rotations of equal batches are equal, and one of each is enough.
        self.arguments.append(
            self.arguments[-1] if self.arguments and _equal(self.arguments[-1], given) else given
        )
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
