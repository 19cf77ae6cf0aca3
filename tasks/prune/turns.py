"""How far layers turn the residual stream: what criteria and allocators by input-output distance share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from resprout.tasks.models.walk import Step, walk
from resprout.tasks.prune.contracts import Bench


def cosines(before: Tensor, after: Tensor) -> Tensor:
    """The cosine of two states of each token, by rounding never outside -1 to 1: float32 [tokens]."""
    return cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1, 1).flatten()


def step_cosines(step: Step) -> Tensor:
    """The cosine of what comes into a layer and what leaves it: float32 [tokens]; runs the layer."""
    before = list(step.hidden)
    return torch.cat([cosines(x, y) for x, y in zip(before, step.run(), strict=True)])


def layer_cosines(bench: Bench) -> Iterator[Tensor]:
    """The cosines of each of the request's layers in turn, in one walk over the calibration tokens."""
    for step in walk(bench.model, bench.input_ids):
        found = step_cosines(step)
        if bench.layers is None or step.index in bench.layers:
            yield found
        bench.progress(step.index + 1, step.total, "layers measured")
