"""Magnitude of hidden channels: the L2 norm of all weights of a layer that a channel is coupled with.

A hidden channel runs through the whole model: what reads it and what writes it in each layer, and the
norms between (coupled structures of LLM-Pruner, arXiv 2305.11627; norms of weights after arXiv
1608.08710). The weights of embeddings and head, which scores by layers have no place for, are left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs


class HiddenMagnitude:
    """L2 norm of all weights coupled with a hidden channel; needs no data."""

    needs: ClassVar[Needs] = "weights"
    units: ClassVar[Kinds] = ("hidden",)

    def score(self, units: Units) -> Tensor:
        """Norm over all tensors of the layer that hold the channel: float32 [channels, 1]."""
        squares = [values.float().square().sum(dim=1) for values in units.coupled()]
        return torch.stack(squares).sum(dim=0).sqrt()[:, None]
