"""Batches by token count: rows of like length together, in an order that only seed and lengths decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Rows are sorted by length inside spans of this many batches: little padding, and still a random order.
_SPAN_BATCHES = 8


def by_area(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of all rows in batches whose padded size (rows * longest) is at most `max_tokens`.

    For passes without training: a batch holds at least one row, however long. The longest come first, so that
    a shortage of memory shows at the start.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches = list[list[int]]()
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def by_tokens(lengths: Sequence[int], batch_tokens: int, steps: int, seed: int) -> list[list[int]]:
    """`steps` training batches of about `batch_tokens` tokens, pass after pass over the rows.

    Padding is not counted. A pass over T tokens gives at most ceil(T / batch_tokens) batches: rows are
    laid end to end and each goes to the batch in which its middle lies, so a batch is off by half a row
    and the mean is exact. Each pass has its own order.

    Args:
        lengths: Tokens of each row, all positive.
        batch_tokens: Aim for the tokens of a batch.
        steps: Number of batches.
        seed: Seed of the order.
    """
    generator = np.random.default_rng(seed)
    batches = list[list[int]]()
    while len(batches) < steps:
        batches += _one_pass(np.asarray(lengths, dtype=np.int64), batch_tokens, generator)
    return batches[:steps]


def _one_pass(
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]], batch_tokens: int, generator: np.random.Generator
) -> list[list[int]]:
    order = generator.permutation(len(lengths))
    starts = np.cumsum(lengths[order]) - lengths[order]
    span = starts // (batch_tokens * _SPAN_BATCHES)
    order = order[np.lexsort((order, lengths[order], span))]
    ends = np.cumsum(lengths[order])
    batch_of = ((2 * ends - lengths[order]) // (2 * batch_tokens)).tolist()
    batches = dict[int, list[int]]()
    for batch, index in zip(batch_of, order.tolist(), strict=True):
        batches.setdefault(batch, []).append(index)
    made = list(batches.values())
    return [made[position] for position in generator.permutation(len(made))]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padding among the positions that the batches compute, 0 to 1."""
    real = sum(lengths[index] for batch in batches for index in batch)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches if batch)
    return 1.0 - real / padded if padded else 0.0
