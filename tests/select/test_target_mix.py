from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from resprout.tasks.select import embed
from resprout.tasks.select.target_mix import healed, mixed_budget, nearness


def test_nearness_by_hand() -> None:
    """Five rows of cluster 0 at one place, five of 1 at another; two of three targets lie at the first."""
    points = np.repeat([[1.0, 0.0], [0.0, 1.0]], 5, axis=0)
    labels = np.repeat([0, 1], 5)
    targets = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    assert nearness(points, labels, targets) == pytest.approx([2 / 3, 1 / 3])
    # Of fewer than five rows all vote.
    assert nearness(points[4:7], labels[4:7], targets) == pytest.approx([1 / 3, 2 / 3])


def test_rows_alike_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 targets and 20,000 rows: all similarities are 16 MB, their places in order 32 MB."""
    rng = np.random.default_rng(0)
    targets, rows = (rng.normal(size=(count, 8)).astype(np.float32) for count in (200, 20_000))
    monkeypatch.setattr(embed, "HELD", 100_000)
    tracemalloc.start()
    try:
        found = embed.most_alike(targets, rows, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.tolist() == np.argsort(-(targets @ rows.T), axis=1, kind="stable")[:, :5].tolist()
    assert peak < 4e6


def test_of_rows_that_are_equally_alike_the_first_ones_come_first() -> None:
    assert embed.most_alike(np.ones((1, 1)), np.array([[1.0], [2.0], [1.0], [2.0]]), 4).tolist() == [
        [1, 3, 0, 2]
    ]


def test_healed_by_hand() -> None:
    found = healed(np.array([0.4, 0.4, 0.4, 0.0]), np.array([0.1, 0.5, 0.4, 0.2]))
    assert found == pytest.approx([0.75, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("reserve", "expected"),
    [
        # All by what is wanted: 3 : 1.
        (0.0, [75, 25, 0]),
        # 80 by what is wanted, 60 and 20, and 20 by degradation, 1 : 1 : 2.
        (0.2, [65, 25, 10]),
    ],
)
def test_mixed_budget_by_hand(reserve: float, expected: list[int]) -> None:
    assert mixed_budget(100, [3, 1, 0], [1, 1, 2], [500, 500, 500], reserve) == expected


def test_mixed_budget_never_exceeds_what_a_cluster_holds() -> None:
    """40 of 80 go to a cluster that holds 45, and 20 of the reserve of 20 would: 5 stay, 15 go on."""
    found = mixed_budget(100, [1, 1], [1, 0], [45, 500], 0.2)
    assert found == [45, 55]
