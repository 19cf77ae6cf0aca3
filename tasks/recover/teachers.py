"""Teachers: who gives the log-probabilities that a student is to come close to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from resprout.tasks.data.response import head
from resprout.tasks.recover.batches import Batch, target_states

Piece = tuple[Tensor, Tensor | None]
"""Log-probabilities of some of a batch's targets: [targets, vocabulary] and None, or those of the tokens
whose ids come second, [targets, k], and of all others together, [targets, k + 1]."""


class Teacher(Protocol):
    """Teaches batch by batch, without gradients."""

    def teach(self, batch: Batch) -> Callable[[slice], Piece]:
        """A function that gives the log-probabilities of a slice of the batch's targets."""
        ...


class Online:
    """The dense model beside the student, run on every batch."""

    def __init__(self, dense: Any, temperature: float = 1.0) -> None:
        self.dense, self.temperature = dense, temperature

    @torch.no_grad()
    def teach(self, batch: Batch) -> Callable[[slice], Piece]:
        """The distribution over the whole vocabulary, at the temperature of the loss."""
        states = target_states(self.dense, batch)

        @torch.no_grad()
        def piece(part: slice) -> Piece:
            return functional.log_softmax(head(self.dense, states[part]) / self.temperature, -1), None

        return piece
