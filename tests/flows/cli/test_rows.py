"""The rows that a finished run selected, written out with the reason why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VERSION = "models:/tiny-pruned@candidate"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def content(finished: Any, stage: str, file: str) -> Path:
    digest = next(one["artifact"]["digest"] for one in finished.result["stages"] if one["name"] == stage)
    return Path(finished.home) / "store" / "content" / digest / file


def test_without_a_file_the_selections_are_listed(finished: Any, resprout: Callable[..., Any]) -> None:
    found = resprout("rows", VERSION, home=finished.home)
    assert found.code == 0, found.err
    assert found.out == f"auto:17  {finished.result['selection']}\n"


def test_selected_rows_have_their_text_and_their_reason(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout("rows", VERSION, "--to", tmp_path / "new" / "rows.jsonl", "--json", home=finished.home)
    assert found.code == 0, found.err
    rows = lines(tmp_path / "new" / "rows.jsonl")
    selected = lines(content(finished, "select", "selected.jsonl"))
    decided = {one["id"]: one for one in lines(content(finished, "select", "decisions.jsonl"))}
    assert [{**one, **decided[one["id"]]} for one in selected] == rows
    assert all(one["reason"] and one["accepted"] and one["output"] for one in rows)
    assert (found.result["rows"], found.result["selection"]) == (len(rows), "auto:17")


def test_refused_rows_say_why_not(finished: Any, resprout: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    assert resprout("rows", VERSION, "--to", path, "--refused", home=finished.home).code == 0
    rows = lines(path)
    decided = lines(content(finished, "select", "decisions.jsonl"))
    assert [(one["id"], one["reason"]) for one in rows] == [(one["id"], one["reason"]) for one in decided]
    pool = {one["id"]: one["output"] for one in lines(content(finished, "filter", "rows.jsonl"))}
    assert any(not one["accepted"] for one in rows)
    assert {one["id"]: one["output"] for one in rows if "output" in one} == pool


def test_written_rows_are_a_pool_of_their_own(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    assert resprout("rows", VERSION, "--to", path, home=finished.home).code == 0
    changes = (f"select.pool=[{{source: {path}}}]", "select.method=full")
    found = resprout("validate", finished.config, *changes, home=tmp_path / "home")
    assert found.code == 0, found.err + found.out


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--selection", "paper:17"), "this run made no selection paper:17; it made auto:17"),
        (("--to", "there.jsonl"), "there.jsonl is there already; give a new file in --to"),
        (("--to", "there.jsonl/rows.jsonl"), "(Not a directory); give a file in --to that can be made"),
    ],
)
def test_what_cannot_be_written_is_said(
    finished: Any,
    resprout: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("kept")
    found = resprout("rows", VERSION, *given, home=finished.home)
    assert found.code == 2
    assert sentence in found.err.replace("File exists", "Not a directory")
    assert (tmp_path / "there.jsonl").read_text() == "kept"


def test_rows_that_are_gone_are_said(finished: Any, copied: Path, resprout: Callable[..., Any]) -> None:
    digest = content(finished, "select", "selected.jsonl").parent.name
    folder = copied / "store" / "content" / digest
    folder.chmod(0o755)
    shutil.rmtree(folder)
    found = resprout("rows", VERSION, home=copied)
    assert found.code == 2
    assert f"the rows of this run (artifact {digest}) are not whole" in found.err
