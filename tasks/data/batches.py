"""Batches by token count, in an order that only seed and lengths decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
    """`steps` training batches of about `batch_tokens` tokens in random order, pass after pass over the rows.

    Padding is not counted. A pass over T tokens gives at most ceil(T / batch_tokens) batches: rows are
    laid end to end and each goes to the batch that holds its middle, so a batch is off by a row at most
    and the mean is exact. Rows are not sorted by length, which would make a batch of one kind of task;
    `by_area` splits a batch into parts of like length where padding costs.

    Args:
        lengths: Tokens of each row, all positive.
        batch_tokens: Aim for the tokens of a batch.
        steps: Number of batches.
        seed: Seed of the order; each pass has its own.
    """
    generator = np.random.default_rng(seed)
    batches = list[list[int]]()
    while len(batches) < steps:
        order = generator.permutation(len(lengths))
        ordered = np.asarray(lengths, dtype=np.int64)[order]
        batch_of = (2 * np.cumsum(ordered) - ordered) // (2 * batch_tokens)
        made = dict[int, list[int]]()
        for batch, index in zip(batch_of.tolist(), order.tolist(), strict=True):
            made.setdefault(batch, []).append(index)
        batches += made.values()
    return batches[:steps]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padding among the positions that the batches compute, 0 to 1."""
    real = sum(lengths[index] for batch in batches for index in batch)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches if batch)
    return 1.0 - real / padded if padded else 0.0
