"""Losses of a recovery: cross-entropy of the targets, and the divergence from a teacher's words."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from resprout.tasks.data.top_tokens import events

Kind = Literal["forward", "reverse", "skewed_forward", "skewed_reverse"]
BLOCK = {"cpu": 2**20, "cuda": 2**26}
"""Logits that are compared at once where the gradient is written down; on a CPU they stay in its cache."""


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


def is_closed(kind: Kind, learned: bool) -> bool:
    """Whether the gradient of a divergence over the vocabulary is written down, and all that is held."""
    return kind == "forward" and not learned


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

    `teacher` are logits of the vocabulary, or the log-probabilities at the temperature T of the tokens whose
    ids come second and of all others together. T^2 keeps the gradient's size (Hinton et al., arXiv
    1503.02531).
    """
    if teacher is None:
        cross_entropy = functional.cross_entropy(_wide(logits), targets, reduction="sum")
        return torch.stack([cross_entropy, torch.zeros_like(cross_entropy)])
    wanted, ids = teacher
    if ids is None and is_closed(kind, learned):
        closed: Tensor = _Closed.apply(logits, targets, wanted, temperature)
        return closed
    logits = _wide(logits)
    cooled = logits / temperature if temperature != 1 else logits
    if ids is None:
        wanted = functional.log_softmax(_wide(wanted) / temperature, -1)
        found = functional.log_softmax(cooled, -1)
    else:
        found = events(cooled, ids)
    with torch.set_grad_enabled(learned and torch.is_grad_enabled()):
        if ids is None and temperature == 1:
            cross_entropy = functional.nll_loss(found, targets, reduction="sum")
        else:
            cross_entropy = functional.cross_entropy(logits, targets, reduction="sum")
    return torch.stack([cross_entropy, temperature**2 * divergence(kind, wanted, found, skew)])


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Closed(torch.autograd.Function):
    """Cross-entropy and T^2 KL(p || q) over a vocabulary: sums over tokens [2].

    The second has the gradient T (q - p), formed beside it some tokens at a time, so that of the vocabulary
    nothing is held but this, in the logits' dtype; the first has none.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        rows = max(1, BLOCK.get(logits.device.type, BLOCK["cuda"]) // logits.shape[-1])
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        sums = _wide(logits.new_zeros(2))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            # q and p, as logarithms at first; all is done in place.
            q, p = (one[part].to(sums.dtype, copy=True) for one in (logits, teacher))
            own = q.gather(-1, targets[part, None])
            sums[0] += (q.logsumexp(-1, keepdim=True) - own).sum()
            for one in (q, p):
                one.div_(temperature)
                one.sub_(one.logsumexp(-1, keepdim=True))
            apart = p - q
            p.exp_()
            sums[1] += temperature**2 * torch.dot(p.flatten(), apart.flatten())
            if gradient is not None:
                gradient[part] = q.exp_().sub_(p).mul_(temperature)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return sums

    @staticmethod
    def backward(ctx: Any, *by: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * by[0][1].to(gradient.dtype), None, None, None
