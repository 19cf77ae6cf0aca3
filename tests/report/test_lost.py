"""What was lost, on the page and in the file of the items that changed sides."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_scores import scores

from resprout.tasks.report.lost import SHOWN, lost_part, lost_rows, write_flips
from resprout.tasks.report.pages import render
from resprout.tasks.report.stage import gather
from tiny_report import HOSTILE, SETTINGS, write_inputs

ITEMS = 60


def both(tmp_path: Path) -> tuple[Path, Path]:
    answers = {"a": "R" * ITEMS, "c": "Rw" * (ITEMS // 2)}
    dense = scores(tmp_path / "of-dense", answers, cut=0.25)
    other = {"a": "R" * (ITEMS // 2) + "w" * (ITEMS // 2), "c": "wR" + "Rw" * (ITEMS // 2 - 1)}
    return dense, scores(tmp_path / "of-other", other, cut=0.5)


def test_a_row_for_each_capability(tmp_path: Path) -> None:
    part = lost_part(both(tmp_path)[0], "pruned", tmp_path / "of-other")
    assert part is not None
    rows = {row.label: row.cells for row in part["rows"]}
    assert rows["maths (a)"][:4] == ("60", "1.000", "0.500", "+0.500")
    assert rows["maths (a)"][5:] == ("<0.001", "30 / 0", "25% / 50%")
    assert rows["facts (c)"][3] == "no difference"
    assert rows["facts (c)"][5:] == ("1.000", "1 / 1", "-")
    assert lost_rows({}) == []


def test_the_page_shows_some_items_of_each_capability_and_the_file_all(tmp_path: Path) -> None:
    dense, other = both(tmp_path)
    part = lost_part(dense, "pruned", other)
    assert part is not None
    assert (len(part["flips"]), part["count"]) == (SHOWN, 32)
    assert {one["task"] for one in part["flips"]} == {"a", "c"}
    write_flips(dense, {"pruned": other, "same": dense}, tmp_path / "flips.jsonl")
    found = [json.loads(line) for line in (tmp_path / "flips.jsonl").read_text().splitlines()]
    assert {one["model"] for one in found} == {"pruned"}
    assert len(found) == 32
    assert [one["kind"] for one in found].count("won") == 1


def test_text_of_items_is_no_markup(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    facts = gather(SETTINGS, inputs, {"source": "cd" * 32})
    assert facts["lost"] is None
    assert "item by item" not in render("report.html", facts)
    part = lost_part(both(tmp_path)[0], "recovered", tmp_path / "of-other")
    assert part is not None
    part["flips"][0] |= {"prompt": HOSTILE, "target": HOSTILE, "dense": HOSTILE, "other": HOSTILE}
    for page in ("report.html", "summary.md"):
        text = render(page, {**facts, "lost": part})
        assert "item by item" in text
        assert "<script>" not in text.replace("\\<script>", "")
        assert "25% / 50%" in text
