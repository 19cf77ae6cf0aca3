"""Losses by capability and the items that changed sides, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_scores import scores

from resprout.tasks.evaluate.losses import flips, losses


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    dense = scores(tmp_path / "dense", {"a": "RRRw", "b": "RwRRww", "c": "RwhR"}, cut=0.25)
    return dense, scores(tmp_path / "other", {"a": "RwwR", "b": "RwRRww", "c": "RwwR"}, cut=0.5)


def test_items_of_a_capability_count_together(both: tuple[Path, Path]) -> None:
    by_capability, by_task = losses(*both)
    maths = by_capability["maths"]
    assert (maths.tasks, maths.drop.items, maths.drop.lost, maths.drop.won) == (("a", "b"), 10, 2, 1)
    assert (maths.drop.dense, maths.drop.other) == (0.6, 0.5)
    # A quarter of four and none of six answers, then half of four.
    assert maths.cut == pytest.approx((0.1, 0.2))
    assert sorted(by_task) == ["a", "b", "c"]
    assert (by_task["b"].drop.lost, by_task["b"].drop.p) == (0, 1.0)
    facts = by_capability["facts"]
    assert facts.cut is None
    assert facts.drop.error is not None, "half an answer is no right or wrong"
    assert facts.drop.lost == 1


def test_items_that_changed_sides_are_listed_with_both_answers(both: tuple[Path, Path]) -> None:
    found = list(flips(*both))
    assert [(one["kind"], one["task"], one["item"]) for one in found] == [
        ("lost", "c", 2), ("lost", "a", 1), ("lost", "a", 2), ("won", "a", 3),
    ]  # fmt: skip
    assert found[1] == {
        "kind": "lost", "capability": "maths", "task": "a", "item": 1, "prompt": "a1?", "target": "t",
        "dense": "RRR", "other": "www", "dense_score": 1.0, "other_score": 0.0, "cut": False,
    }  # fmt: skip
    assert list(flips(both[0], both[0])) == []


def test_scores_without_tasks_lost_nothing(tmp_path: Path) -> None:
    (tmp_path / "details.json").write_text("{}")
    assert losses(tmp_path, tmp_path) == ({}, {})
    assert list(flips(tmp_path, tmp_path)) == []
