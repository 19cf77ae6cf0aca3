"""Rows keep where they are from on their way through a selection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resprout.configs.schema import FilterConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.select.rows import Origin
from resprout.tasks.select.stage import filter_rows, select


def test_selected_rows_and_decisions_say_where_a_row_is_from(
    pool_rows: list[dict[str, Any]], write_rows: Callable[..., Path], models_folder: Path, tmp_path: Path
) -> None:
    rows = [{**row, "file": f"part-{n % 3}.jsonl", "row": n + 1} for n, row in enumerate(pool_rows)]
    rows += [
        {**rows[0], "id": "z-filtered", "output": f"{rows[0]['output']}!", "row": 91},
        {**rows[1], "id": "z-empty", "output": "", "row": 92},
        {**pool_rows[2], "id": "z-passage", "instruction": "of a document, which has no row"},
    ]
    for folder in ("filtered", "selection"):
        (tmp_path / folder).mkdir()
    config = SelectConfig(
        method="random",
        pool=(RowSource(source="x"),),
        budget_ratio=0.3,
        max_len_tokens=400,
        filter=FilterConfig(near_duplicates=True),
    )
    job = Job(config, seed=17, dtype="float32")
    filter_rows.body(job, {"rows": write_rows(rows)}, tmp_path / "filtered", silent)
    inputs = {name: models_folder / name for name in ("dense", "pruned")} | {"rows": tmp_path / "filtered"}
    select.body(job, inputs, tmp_path / "selection", silent)
    selected, decisions = (
        [json.loads(line) for line in (tmp_path / "selection" / name).read_text().splitlines()]
        for name in ("selected.jsonl", "decisions.jsonl")
    )
    known = {row["id"]: (row["source"], row.get("file"), row.get("row")) for row in rows}
    for found in (decisions, selected):
        assert all((one["source"], one.get("file"), one.get("row")) == known[one["id"]] for one in found)
    assert [one["id"] for one in decisions] == sorted(known)
    reasons = {one["id"]: one["reason"] for one in decisions}
    assert "nearly the same as" in reasons["z-filtered"]
    assert reasons["z-empty"] == "no response token left after the template"


def test_rows_of_one_file_share_its_name() -> None:
    first, second = (
        Origin.of(json.loads('{"source": "s", "file": "train-0.jsonl", "row": 7}')) for _ in "ab"
    )
    assert first == ("s", "train-0.jsonl", 7)
    assert first.file is second.file
    assert Origin.of({"id": "of a document"}) == (None, None, None)
