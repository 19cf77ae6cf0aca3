"""A model run without some of its layers or sublayers, from any layer on; it is left as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.depth import SUBLAYERS, Block
from resprout.tasks.models.layout import left_out
from resprout.tasks.models.walk import layers_replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


BATCH_TOKENS = 512
"""Tokens of a batch whose logits are in memory."""


class Trial:
    """Runs of one model; `ids` are int64 [rows, tokens]."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.parts = anatomy(model)

    def logits(
        self, ids: Tensor, gone: Collection[Block] = (), start: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """Logits [rows, tokens, vocab] of the model without `gone`.

        With `hidden`, the residual stream in front of layer `start`, what comes before it is not run again;
        `start` may be the number of layers.
        """
        with self._without(gone, start, hidden):
            return self._run(ids)

    def inputs(
        self, ids: Tensor, gone: Collection[Block] = (), start: int = 0, hidden: Tensor | None = None
    ) -> list[Tensor]:
        """The residual stream in front of each layer and behind the last, without `gone`, and no logits.

        `start` and `hidden` as of `logits`; what is in front of `start` means nothing then.
        """
        seen: list[Tensor] = []
        with self._without(gone, start, hidden) as layers, ExitStack() as watching:
            for module in layers:
                hook = module.register_forward_hook(
                    lambda _, given, out: seen.extend((given[0], _stream(out)))
                )
                watching.callback(hook.remove)
            with torch.no_grad():
                self.parts.decoder(input_ids=ids.to(self.model.device), use_cache=False)
        return [*seen[::2], seen[-1]]

    def _run(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits
        return logits

    @contextmanager
    def _without(
        self, gone: Collection[Block], start: int, hidden: Tensor | None
    ) -> Iterator[list[nn.Module]]:
        lost = Counter(block.layer for block in gone for _ in block.sublayers)
        layers: list[nn.Module] = [layer.module for layer in self.parts.layers]
        with ExitStack() as changes:
            for block in gone:
                layer = self.parts.layers[block.layer]
                whole = lost[block.layer] == len(SUBLAYERS)
                for sublayer in () if whole else block.sublayers:
                    changes.enter_context(left_out(layer.module, layer.shape, sublayer))
                if whole:
                    layers[block.layer] = _Given(None)
            if hidden is not None:
                layers[:start] = [_Given(hidden) for _ in range(start)]
            changes.enter_context(layers_replaced(self.parts, layers))
            yield layers


def next_token_loss(logits: Tensor, ids: Tensor) -> float:
    """Mean loss of the next token in nats; `logits` [rows, tokens, vocab].

    The mean is in double precision, so that two of them can be subtracted.
    """
    wanted = ids[:, 1:].flatten().to(logits.device)
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, reduction="none")
    return losses.double().mean().item()


class _Given(nn.Module):
    """Stands in for a layer that is not run: gives what it was given, or the residual stream it holds."""

    def __init__(self, hidden: Tensor | None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *more: Any, **arguments: Any) -> Tensor:
        return hidden_states if self.hidden is None else self.hidden


def _stream(output: Any) -> Tensor:
    """The residual stream among what a layer returns."""
    stream: Tensor = output if isinstance(output, Tensor) else output[0]
    return stream
