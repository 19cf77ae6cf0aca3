"""The drawing of a lineage: makers above what they made, no box over another, no wider than a page."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from resprout.tasks.report.graph import ACROSS, HEIGHT, MOST, WIDTH, draw, reduced


def graph(seed: int, nodes: int = 24) -> dict[str, list[str]]:
    chosen = random.Random(seed)
    return {
        f"n{at}": [f"n{one}" for one in range(at) if chosen.random() < (0.15 if at > 6 else 0.0)]
        for at in range(nodes)
    }


@pytest.mark.parametrize("seed", range(5))
def test_makers_stand_above_and_boxes_apart(seed: int) -> None:
    given = graph(seed)
    found = draw(given)
    assert set(found.boxes) == set(given)
    for maker, made in found.lines:
        assert found.boxes[maker].y + HEIGHT < found.boxes[made].y
    for one, other in combinations(found.boxes.values(), 2):
        assert abs(one.y - other.y) >= HEIGHT or abs(one.x - other.x) >= WIDTH
    for box in found.boxes.values():
        assert 0 <= box.x <= found.width - WIDTH
        assert 0 <= box.y <= found.height - HEIGHT


def test_many_sources_of_one_stage_take_several_rows() -> None:
    found = draw({**{f"s{at}": [] for at in range(20)}, "end": [f"s{at}" for at in range(20)]})
    rows = [box.y for box in found.boxes.values()]
    assert max(rows.count(y) for y in rows) <= MOST
    assert len(found.lines) == 20


def test_a_run_with_every_stage_fits_a_page() -> None:
    steps = {
        "text": [], "data": [], "pool": [], "piqa": [], "arc": [], "model": [],
        "calibrate": ["model", "text"], "score": ["model", "calibrate"],
        "plan": ["model", "calibrate", "score"],
        "evaluate dense": ["model", "data", "piqa", "arc"], "prune": ["model", "calibrate", "plan"],
        "evaluate pruned": ["prune", "model", "data", "piqa", "arc"], "select": ["model", "prune", "pool"],
        "recover": ["prune", "select", "model"],
        "evaluate recovered": ["recover", "model", "data", "piqa", "arc"],
        "gate": ["evaluate dense", "evaluate recovered"], "export": ["recover"],
        "measure": ["model", "prune", "recover"],
    }  # fmt: skip
    assert draw(steps).width <= (WIDTH + ACROSS) * MOST


def test_lines_that_follow_from_others_are_left_out() -> None:
    assert reduced({"a": [], "b": ["a"], "c": ["a", "b"], "d": ["c", "a", "b"]}) == {
        "a": [], "b": ["a"], "c": ["b"], "d": ["c"],
    }  # fmt: skip


def test_a_line_passes_no_box_in_the_rows_between() -> None:
    found = draw({"a": [], "b": ["a"], "c": ["b"], "x": [], "d": ["c", "x"], "far": ["d"], "e": ["far", "a"]})
    assert ("a", "e") not in found.lines
    deep = draw({"a": [], "b": ["a"], "c": ["b"], "y": ["a"], "d": ["c", "y"]})
    assert (
        "V" in deep.lines["a", "y"] or "V" in deep.lines["y", "d"] or deep.boxes["y"].y == deep.boxes["c"].y
    )
