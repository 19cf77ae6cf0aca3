"""Runs whose rows come of documents, of a grammar, or are aimed at what the model is for after a pilot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_run import config, words, write_run

SELECT = config()["select"]
SHORT = {"measure": None, "gate": None, "register": None}


def artifact(ran: Any, name: str) -> Path:
    made = {stage["name"]: stage for stage in ran.result["stages"]}
    store = Path(ran.result["exports"][0]["uri"].removeprefix("file://")).parents[1]
    return store / made[name]["artifact"]["digest"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_become_rows_that_are_chosen(resprout: Callable[..., Any], tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(8):
        text = "".join(f"## Part {part}\n\n{words(30, 8 * number + part)}.\n\n" for part in range(4))
        (docs / f"{number}.md").write_text(f"# Page {number}\n\n{text}")
    (docs / "empty.md").touch()
    select = {
        "method": "random", "documents": [{"source": "docs", "on_bad_row": "skip"}], "budget_ratio": 0.5,
        "max_len_tokens": 256, "prepare": {"passage_tokens": 128, "min_tokens": 8},
    }  # fmt: skip
    path = write_run(tmp_path, select=select, **SHORT)
    ran = resprout("run", path, "--json", home=tmp_path / "home")
    assert ran.code == 0, ran.err
    prepared = lines(artifact(ran, "prepare") / "rows.jsonl")
    assert len(prepared) >= 32
    chosen = lines(artifact(ran, "select") / "selected.jsonl")
    assert 0 < len(chosen) < len(prepared)
    texts = {one["id"]: one["text"] for one in lines(artifact(ran, "acquire documents") / "documents.jsonl")}
    for row in chosen:
        assert texts[row["document"]][row["begin"] : row["end"]] == row["output"]
    both = resprout("validate", path, "select.documents=[]", home=tmp_path / "home")
    assert both.code == 2
    assert "select has no rows; give pool, sources of rows, or documents, or both" in both.err


def test_a_grammar_is_a_pool(resprout: Callable[..., Any], tmp_path: Path) -> None:
    grammar = {
        "skill": "sums", "rows": 60,
        "rules": {"digit": {"range": [1, 99]}},
        "draw": {"a": "digit", "b": "digit"},
        "columns": {"instruction": "{{ a }} plus {{ b }}?", "output": "{{ a | int + b | int }}"},
    }  # fmt: skip
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(grammar))
    select = {**SELECT, "method": "stratified", "pool": [{"source": "sums.yaml", "format": "grammar"}]}
    ran = resprout("run", write_run(tmp_path, select=select, **SHORT), "--json", home=tmp_path / "home")
    assert ran.code == 0, ran.err
    summary = json.loads((artifact(ran, "select") / "summary.json").read_text())
    assert [one["category"] for one in summary["strata"]] == ["sums"]


@pytest.fixture
def aimed(tmp_path: Path) -> Path:
    rows = [json.loads(line) for line in write_run(tmp_path, **SHORT).with_name("pool.jsonl").open()]
    (tmp_path / "wanted.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:6]))
    select = {
        **SELECT,
        "capabilities": {"rows": [{"source": "wanted.jsonl"}], "reserve": 0.2},
        "paser": {**SELECT["paser"], "pilot_tokens": 128},
        "compare": ["rds_plus", "auto"],
        "compare_seeds": 2,
    }
    return write_run(tmp_path, select=select, **SHORT)


def test_a_selection_is_aimed_after_a_pilot(
    aimed: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    ran = resprout("run", aimed, "--json", home=tmp_path / "home")
    assert ran.code == 0, ran.err
    made = {stage["name"] for stage in ran.result["stages"]}
    pilot = {"acquire capabilities", "select for pilot", "recover pilot"}
    assert {*pilot, "select", "select aimed:18"} <= made
    summary = json.loads((artifact(ran, "select") / "summary.json").read_text())
    assert sum(one["nearness"] for one in summary["clusters"]) == pytest.approx(1.0)
    assert all(0 <= one["healed"] <= 1 for one in summary["clusters"])
    # What is not aimed looks at no wanted row, however many the run has.
    summary = json.loads((artifact(ran, "select auto:17") / "summary.json").read_text())
    assert all("nearness" not in one and "healed" in one for one in summary["clusters"])
    again = resprout("run", aimed, "--json", home=tmp_path / "home")
    assert [one["name"] for one in again.result["stages"] if not one["cached"]] == []
