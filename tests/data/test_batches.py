from __future__ import annotations

import numpy as np

from resprout.tasks.data.batches import by_area

LENGTHS = np.random.default_rng(3).integers(10, 256, size=500).tolist()


def test_by_area_by_hand() -> None:
    """Sorted 5 4 4 2 1; 2 * 5 = 10 fits, 3 * 5 does not; then 2 * 4, 3 * 4 > 10; last 1."""
    assert by_area([4, 1, 5, 2, 4], 10) == [[2, 0], [4, 3], [1]]


def test_by_area_holds_all_rows_and_the_bound() -> None:
    batches = by_area(LENGTHS, 1024)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert all(len(batch) * max(LENGTHS[index] for index in batch) <= 1024 for batch in batches)
    places = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    assert sum(LENGTHS) / places > 0.95


def test_by_area_keeps_a_row_longer_than_the_bound() -> None:
    assert by_area([7, 3], 5) == [[0], [1]]
