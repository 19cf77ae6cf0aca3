from __future__ import annotations

import math

import numpy as np

from resprout.tasks.data.batches import by_area, by_tokens, padding_share

LENGTHS = np.random.default_rng(3).integers(10, 256, size=500).tolist()


def test_by_area_by_hand() -> None:
    """Sorted 5 4 4 2 1; 2 * 5 = 10 fits, 3 * 5 does not; then 2 * 4, 3 * 4 > 10; last 1."""
    assert by_area([4, 1, 5, 2, 4], 10) == [[2, 0], [4, 3], [1]]


def test_by_area_holds_all_rows_and_the_bound() -> None:
    batches = by_area(LENGTHS, 1024)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert all(len(batch) * max(LENGTHS[index] for index in batch) <= 1024 for batch in batches)
    assert padding_share(LENGTHS, batches) < 0.05


def test_by_area_keeps_a_row_longer_than_the_bound() -> None:
    assert by_area([7, 3], 5) == [[0], [1]]


def test_one_pass_takes_each_row_once_in_the_least_number_of_batches() -> None:
    """65,644 tokens are 32 batches of 2,000 and a rest of 1,644."""
    assert sum(LENGTHS) == 65_644
    batches = by_tokens(LENGTHS, 2000, 33, seed=5)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    tokens = [sum(LENGTHS[index] for index in batch) for batch in batches]
    assert sorted(tokens)[1] >= 2000 - 256  # all but the last are full to within a row
    assert max(tokens) <= 2000 + 256


def test_passes_differ_and_seeds_decide() -> None:
    steps = math.ceil(sum(LENGTHS) / 2048)
    twice = by_tokens(LENGTHS, 2048, 2 * steps, seed=5)
    assert twice[:steps] == by_tokens(LENGTHS, 2048, steps, seed=5)
    assert twice[:steps] != twice[steps:]
    assert twice[:steps] != by_tokens(LENGTHS, 2048, steps, seed=6)


def test_a_batch_mixes_lengths() -> None:
    """Rows of 10 and of 200 tokens, half the tokens each: no batch of ten is all of one kind."""
    lengths = [10] * 400 + [200] * 20
    batches = by_tokens(lengths, 800, 10, seed=1)
    assert all({lengths[index] for index in batch} == {10, 200} for batch in batches)


def test_padding_share_by_hand() -> None:
    """Rows of 4 and 2 side by side: 6 of 8 positions are real."""
    assert padding_share([4, 2, 3], [[0, 1]]) == 0.25
    assert padding_share([4, 2, 3], []) == 0.0
