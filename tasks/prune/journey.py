"""The average size over training, and the loss that it predicts (Jin et al., ICLR 2025, arXiv 2501.12486).

The paper's law is Chinchilla's with the number of parameters averaged over training in place of N:
L = E + A / N_avg^alpha + B / D^beta, for models that are pruned while they train and for those that are not.
The coefficients are Chinchilla's own (Hoffmann et al., arXiv 2203.15556, approach 3) in place of a fit of the
paper's. They were fitted to pre-training from scratch: of a model that is trained already the law compares
schedules, more average parameters meaning less loss, and predicts no loss that will be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ENTROPY, SIZE, DATA = 1.69, 406.4, 410.7
"""E, A and B."""
ALPHA, BETA = 0.34, 0.28


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


def predicted_loss(average: float, tokens: float = math.inf) -> float:
    """Nats a token by the law, of `average` parameters after `tokens` tokens; of endless data by default."""
    return ENTROPY + SIZE / average**ALPHA + DATA / tokens**BETA
