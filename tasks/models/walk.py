"""Calibration tokens through a decoder one layer at a time, so that one layer's activations are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Anatomy, Layer, anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 2048
"""Tokens in a forward pass over calibration data; larger batches are no faster on a CPU."""


@dataclass
class Step:
    """One layer of a walk; `hidden` holds the layer's inputs, batch by batch: [rows, tokens, hidden size]."""

    index: int
    total: int
    layer: Layer
    hidden: list[Tensor]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    ran: bool = False

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
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise BadInput(
            f"input_ids has shape {list(input_ids.shape)}; give [samples, tokens], both at least 1"
        )
    parts = anatomy(model)
    rows = max(1, batch_tokens // input_ids.shape[1])
    recorders = [_Recorder() for _ in parts.layers]
    hidden: list[Tensor] = []
    for ids in input_ids.split(rows):
        with torch.no_grad(), _layers_replaced(parts, recorders):
            parts.decoder(input_ids=ids.to(model.device), use_cache=False)
        hidden.append(recorders[0].seen)
    for index, layer in enumerate(parts.layers):
        step = Step(index, len(parts.layers), layer, hidden, recorders[index].arguments)
        yield step
        if not step.ran:
            for _ in step.run():
                pass


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
        self.arguments.append((more, arguments))
        return hidden_states


@contextmanager
def _layers_replaced(parts: Anatomy, recorders: list[_Recorder]) -> Iterator[None]:
    name = parts.family.layers
    layers = getattr(parts.decoder, name)
    setattr(parts.decoder, name, nn.ModuleList(recorders))
    try:
        yield
    finally:
        setattr(parts.decoder, name, layers)
