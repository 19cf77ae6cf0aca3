"""Losses of a recovery: cross-entropy of the targets, and the divergence from a teacher's words."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["forward", "reverse", "skewed_forward", "skewed_reverse"]
LEAST = 1e-12
"""Least mass that is left to the tokens outside of a top k, in place of none."""


def divergence(kind: Kind, teacher: Tensor, student: Tensor, skew: float = 0.1) -> Tensor:
    """The sum over tokens of the divergence of log-probabilities [tokens, events], in nats.

    forward: KL(p || q) of the teacher's p and the student's q (Hinton et al., arXiv 1503.02531). reverse:
    KL(q || p) (MiniLLM, arXiv 2306.08543). skewed_forward: KL(p || a p + (1 - a) q), and skewed_reverse:
    KL(q || (1 - a) p + a q), with a = `skew` (DistiLLM, arXiv 2402.03898).
    """
    if kind == "forward":
        return functional.kl_div(student, teacher, reduction="sum", log_target=True)
    if kind == "reverse":
        return functional.kl_div(teacher, student, reduction="sum", log_target=True)
    own, other = math.log(skew), math.log1p(-skew)
    if kind == "skewed_forward":
        mixed = torch.logaddexp(teacher + own, student + other)
        return functional.kl_div(mixed, teacher, reduction="sum", log_target=True)
    mixed = torch.logaddexp(teacher + other, student + own)
    return functional.kl_div(mixed, student, reduction="sum", log_target=True)


def events(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens `ids` [tokens, k] and of all others together: [tokens, k + 1].

    By them a divergence is at most that over the whole vocabulary (data processing inequality).
    """
    kept = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest_of(kept)], -1)


def rest_of(kept: Tensor) -> Tensor:
    """The log-probability of all events beside those of `kept` [tokens, k]: [tokens, 1]."""
    left = -torch.expm1(kept.logsumexp(-1, keepdim=True).clamp(max=0.0))
    return left.clamp(min=LEAST).log()


def sums(
    logits: Tensor,
    targets: Tensor,
    teacher: tuple[Tensor, Tensor | None] | None,
    kind: Kind,
    skew: float,
    temperature: float,
    learned: bool = True,
) -> Tensor:
    """Sums over tokens of (cross-entropy, T^2 divergence): [2]; the second is 0 without a teacher.

    Where targets are not `learned` the cross-entropy has no gradient, which over a whole vocabulary costs as
    much as the divergence's.

    `teacher` are log-probabilities at the temperature T: over the vocabulary, or those of the tokens whose
    ids come second and of all others together. T^2 keeps the gradient's size (Hinton et al., arXiv
    1503.02531).
    """
    if teacher is None:
        cross_entropy = functional.cross_entropy(logits, targets, reduction="sum")
        return torch.stack([cross_entropy, torch.zeros_like(cross_entropy)])
    wanted, ids = teacher
    cooled = logits / temperature if temperature != 1 else logits
    found = functional.log_softmax(cooled, -1) if ids is None else events(cooled, ids)
    with torch.set_grad_enabled(learned and torch.is_grad_enabled()):
        if ids is None and temperature == 1:
            cross_entropy = functional.nll_loss(found, targets, reduction="sum")
        else:
            cross_entropy = functional.cross_entropy(logits, targets, reduction="sum")
    return torch.stack([cross_entropy, temperature**2 * divergence(kind, wanted, found, skew)])
