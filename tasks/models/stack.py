"""A model's layers, and what calibration tokens bring to them, to be run by themselves and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.walk import BATCH_TOKENS, walk

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stack:
    """Layers of a model as calibration tokens meet them; made by one forward pass.

    `start` are the first layer's inputs, batch by batch [rows, tokens, hidden], all in memory; `calls` are
    what each layer is given beside them, by layer and batch.
    """

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, batch_tokens: int = BATCH_TOKENS) -> None:
        self.layers: list[Any] = [layer.module for layer in anatomy(model).layers]
        self.start: list[Tensor] = []
        self.calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        for step in walk(model, input_ids, batch_tokens):
            self.start = self.start or list(step.hidden)
            self.calls.append(step.arguments)

    def run(self, members: Sequence[int], batch: int, hidden: Tensor) -> Tensor:
        """Hidden states of a batch behind these layers, one after another."""
        for layer in members:
            more, arguments = self.calls[layer][batch]
            output = self.layers[layer](hidden, *more, **arguments)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden
