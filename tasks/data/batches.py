"""Batches of rows of like length, in an order that only the lengths decide."""

from __future__ import annotations

from collections.abc import Sequence


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
