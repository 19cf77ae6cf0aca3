"""The average size over training, and the loss that it predicts (Jin et al., ICLR 2025, arXiv 2501.12486).

The paper's law is Chinchilla's with the number of parameters averaged over training in place of N:
L = E + A / N_avg^alpha + B / D^beta, for models that are pruned while they train and for those that are not.
The coefficients are Chinchilla's own (Hoffmann et al., arXiv 2203.15556, approach 3) in place of a fit of the
paper's. They were fitted to pre-training from scratch, and outside the sizes and data of that fit the law
says nothing: for 32,768 tokens it would give 24.74 nats, where a uniform guess over 49,152 tokens has 10.80.
"""

from __future__ import annotations

from collections.abc import Sequence

ENTROPY, SIZE, DATA = 1.69, 406.4, 410.7
"""E, A and B."""
ALPHA, BETA = 0.34, 0.28
PARAMS, TOKENS = (70e6, 16e9), (5e9, 500e9)
"""Sizes and data of the models that Chinchilla's coefficients were fitted to, least and most."""


def average_params(dense: int, rounds: Sequence[tuple[float, int]]) -> float:
    """Parameters averaged over training: `dense` up to the first round, then what each round leaves.

    Args:
        dense: Parameters before the first round.
        rounds: Of each the share of training before it, never falling, and the parameters after it.
    """
    total, since, size = 0.0, 0.0, dense
    for train, left in rounds:
        total += size * (train - since)
        since, size = train, left
    return total + size * (1 - since)


def predicted_loss(average: float, tokens: float) -> float | None:
    """Nats a token by the law, of `average` parameters after `tokens` tokens; None outside its range."""
    if not (PARAMS[0] <= average <= PARAMS[1] and TOKENS[0] <= tokens <= TOKENS[1]):
        return None
    return ENTROPY + SIZE / average**ALPHA + DATA / tokens**BETA
