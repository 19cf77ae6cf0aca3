"""Loss on response tokens: cross-entropy and distillation (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from resprout.tasks.data.response import Batch, head, response_states

HEAD_ELEMENTS = 2**26
"""Logits (tokens * vocabulary) held for the backward pass; beyond, they are computed again piece by piece."""


class Loss(NamedTuple):
    """Scalars, means over the response tokens of a step; `distillation` is 0 without a dense model."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


def response_loss(
    student: Any, parts: Sequence[Batch], dense: Any = None, weight: float = 0.0, temperature: float = 1.0
) -> Loss:
    """(1 - w) CE + w T^2 KL(dense || student) over response tokens; prompts and padding do not count.

    Args:
        student: The model being trained.
        parts: Batches that are computed one by one and count as one.
        dense: The original model; not run where w is 0.
        weight: w in [0, 1].
        temperature: T, of both distributions in the KL; T^2 keeps the gradient's size.
    """
    with_dense = dense if weight > 0 else None
    sums = torch.stack([_part_sums(student, batch, with_dense, temperature) for batch in parts]).sum(0)
    cross_entropy, distillation = sums / sum(len(batch.targets) for batch in parts)
    total = (1 - weight) * cross_entropy + weight * distillation if weight > 0 else cross_entropy
    return Loss(total, cross_entropy, distillation)


def _part_sums(student: Any, batch: Batch, dense: Any, temperature: float) -> Tensor:
    """`_sums` over all response tokens of a batch, the head in pieces where its output would be large."""
    states = response_states(student, batch)
    dense_states = None
    if dense is not None:
        with torch.no_grad():
            dense_states = response_states(dense, batch)
    count = len(batch.targets)
    size = max(1, HEAD_ELEMENTS // student.get_output_embeddings().weight.shape[0])
    pieces = list[Tensor]()
    for start in range(0, count, size):
        given = (
            student,
            states[start : start + size],
            batch.targets[start : start + size],
            dense,
            None if dense_states is None else dense_states[start : start + size],
            temperature,
        )
        whole = count <= size or not torch.is_grad_enabled()
        pieces.append(_sums(*given) if whole else checkpoint(_sums, *given, use_reentrant=False))
    return torch.stack(pieces).sum(0)


def _sums(
    student: Any,
    states: Tensor,
    targets: Tensor,
    dense: Any,
    dense_states: Tensor | None,
    temperature: float,
) -> Tensor:
    """Sums over tokens of (cross-entropy, T^2 KL): [2]."""
    logits = head(student, states)
    cross_entropy = functional.cross_entropy(logits, targets, reduction="sum")
    if dense_states is None:
        return torch.stack([cross_entropy, torch.zeros_like(cross_entropy)])
    with torch.no_grad():
        teacher = functional.log_softmax(head(dense, dense_states) / temperature, -1)
    learner = functional.log_softmax(logits / temperature, -1)
    divergence = functional.kl_div(learner, teacher, reduction="sum", log_target=True)
    return torch.stack([cross_entropy, temperature**2 * divergence])
