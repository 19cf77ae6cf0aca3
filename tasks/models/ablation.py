"""Ablation: a model run without some of its layers or sublayers, from any layer on, and left as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.forward import layers_replaced
from resprout.tasks.models.layouts import without_sublayer
from resprout.tasks.models.modeling_resprout import first_output
from resprout.tasks.models.shape import SUBLAYERS, DepthUnit, Model

BATCH_TOKENS = 512
"""Tokens of a batch whose logits are in memory."""


class Ablation:
    """Runs of one model without some of its layers; `ids` are int64 [rows, tokens]."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.parts = anatomy(model)

    def logits(
        self, ids: Tensor, removed: Collection[DepthUnit] = (), start: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """Logits [rows, tokens, vocab] of the model without `removed`.

        With `hidden`, the residual stream in front of layer `start`, what comes before it is not run again;
        `start` may be the number of layers.
        """
        with self._without(removed, start, hidden):
            return self._run(ids)

    def inputs(
        self, ids: Tensor, removed: Collection[DepthUnit] = (), start: int = 0, hidden: Tensor | None = None
    ) -> list[Tensor]:
        """The residual stream in front of each layer and behind the last, without `removed`, and no logits.

        `start` and `hidden` as of `logits`; what is in front of `start` means nothing then.
        """
        seen: list[Tensor] = []
        with self._without(removed, start, hidden) as layers, ExitStack() as watching:
            for module in layers:
                hook = module.register_forward_hook(
                    lambda _, given, out: seen.extend((given[0], first_output(out)))
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
        self, removed: Collection[DepthUnit], start: int, hidden: Tensor | None
    ) -> Iterator[list[nn.Module]]:
        count = Counter(unit.layer for unit in removed for _ in unit.sublayers)
        layers: list[nn.Module] = [layer.module for layer in self.parts.layers]
        with ExitStack() as changes:
            for unit in removed:
                layer = self.parts.layers[unit.layer]
                whole = count[unit.layer] == len(SUBLAYERS)
                for sublayer in () if whole else unit.sublayers:
                    changes.enter_context(without_sublayer(layer.module, layer.shape, sublayer))
                if whole:
                    layers[unit.layer] = _Constant(None)
            if hidden is not None:
                layers[:start] = [_Constant(hidden) for _ in range(start)]
            changes.enter_context(layers_replaced(self.parts, layers))
            yield layers


def next_token_loss(logits: Tensor, ids: Tensor) -> float:
    """Mean loss of the next token in nats; `logits` [rows, tokens, vocab].

    The mean is in double precision, so that two of them can be subtracted.
    """
    wanted = ids[:, 1:].flatten().to(logits.device)
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, reduction="none")
    return losses.double().mean().item()


class _Constant(nn.Module):
    """Stands in for a layer that is not run: returns its input, or the residual stream it holds."""

    def __init__(self, hidden: Tensor | None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *more: Any, **arguments: Any) -> Tensor:
        return hidden_states if self.hidden is None else self.hidden
