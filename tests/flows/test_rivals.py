"""Dominance by hand: less is better in each signed value."""

from __future__ import annotations

import pytest

from resprout.flows.rivals import Rivals, dominates, front


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 2), (1, 3), True),
        ((1, 2), (1, 2), False),
        ((1, 2), (2, 1), False),
        ((2, 3), (1, 3), False),
        ((-0.5,), (-0.4,), True),
    ],
)
def test_a_point_dominates_where_it_is_nowhere_worse_and_somewhere_better(one, other, expected) -> None:
    assert dominates(one, other) is expected


def test_the_front_holds_what_no_other_dominates() -> None:
    points = {"small": (1.0, 9.0), "good": (5.0, 2.0), "worse": (5.0, 3.0), "same": (1.0, 9.0)}
    assert front(points) == ["small", "good", "same"]


def test_a_model_is_held_against_others_by_signed_metrics() -> None:
    rivals = Rivals((("params", 1), ("acc", -1)), {"a": (100.0, -0.5), "b": (90.0, -0.7)})
    assert rivals.better({"params": 95.0, "acc": 0.6}) == "b"
    assert rivals.better({"params": 80.0, "acc": 0.1}) is None
    assert rivals.better({"params": 90.0, "acc": 0.7}) is None, "equal is not dominated"
    assert rivals.better({"params": 95.0}) is None, "without a metric nothing is known"
    assert Rivals.from_data(rivals.as_data()) == rivals
