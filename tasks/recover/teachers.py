"""Teachers: who gives the distributions that a student is to come close to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from resprout.tasks.data.response import narrow_head
from resprout.tasks.recover.batches import Batch, target_states

Piece = tuple[Tensor, Tensor | None]
"""Of some of a batch's targets the logits, [targets, vocabulary], and None; or the log-probabilities, at the
loss's temperature, [targets, k + 1], of the tokens whose ids come second, [targets, k], and of all others."""


class Teacher(Protocol):
    """Teaches batch by batch, without gradients."""

    def teach(self, batch: Batch) -> Callable[[slice], Piece]:
        """A function that teaches a slice of the batch's targets."""
        ...


class Online:
    """The dense model beside the student, run on every batch."""

    def __init__(self, dense: Any) -> None:
        self.dense = dense

    @torch.no_grad()
    def teach(self, batch: Batch) -> Callable[[slice], Piece]:
        """The logits of the whole vocabulary."""
        states = target_states(self.dense, batch)

        @torch.no_grad()
        def piece(part: slice) -> Piece:
            return narrow_head(self.dense, states[part]), None

        return piece
