"""Selections that are killed and begun again: nothing is asked twice, and not one byte differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_checkpoints import Kept, Killed

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.select import auto, divergence, kept_rows, paser_size
from resprout.tasks.select.kept_rows import KeptRows
from resprout.tasks.select.stage import select

SAMPLED = {"clusters": 2, "landmarks": 100, "sample_rows": 30}
SELECTIONS: dict[str, dict[str, Any]] = {
    "ifd": {"method": "ifd"},
    "perplexity": {"method": "perplexity"},
    "rds_plus": {"method": "rds_plus", "capabilities": {"rows": [{"source": "y"}]}},
    "max_ifd": {"paser": {**SAMPLED, "max_ifd": 1.0}},
    "hidden": {"paser": {**SAMPLED, "embedder": "hidden"}},
    "aimed": {"paser": {**SAMPLED, "embedder": "hidden"}, "capabilities": {"rows": [{"source": "y"}]}},
    "pilot": {"paser": {**SAMPLED, "pilot_tokens": 100}},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_killed_selection_asks_for_no_row_again(
    name: str,
    models_folder: Path,
    pool_rows: list[dict[str, Any]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (paser_size, auto):
        monkeypatch.setattr(module, "MOST_ROWS", 50)
    monkeypatch.setitem(divergence.PASS_TOKENS, "cpu", 3000)
    monkeypatch.setattr(kept_rows, "CHECKPOINT_MINUTES", 1e-9)
    config = SelectConfig.model_validate(
        {"pool": [{"source": "x"}], "budget_ratio": 0.1, "max_len_tokens": 400, **SELECTIONS[name]}
    )
    inputs = {one: models_folder / one for one in ("dense", "pruned")} | {"rows": write_rows(pool_rows)}
    if "capabilities" in SELECTIONS[name]:
        wanted = [{**row, "id": f"t{number}"} for number, row in enumerate(pool_rows[:9])]
        inputs["targets"] = write_rows(wanted, "targets")
    if name == "pilot":
        inputs["pilot"] = models_folder / "dense"
    asked = list[int]()
    real = KeptRows.ask

    def ask(self: KeptRows, table: Any, rows: Any, *others: Any) -> None:
        asked.append(len(rows))
        real(self, table, rows, *others)

    monkeypatch.setattr(KeptRows, "ask", ask)

    def run(folder: str, kept: Kept | None, progress: Any = silent) -> dict[str, bytes]:
        asked.clear()
        (tmp_path / folder).mkdir()
        job = Job(config, dtype="float32", checkpoints=kept)
        select.body(job, inputs, tmp_path / folder, progress)
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    every = Kept(tmp_path / "every")
    whole = run("whole", every)
    rows, last = sum(asked), len(every.steps)
    assert last > 3
    for end in (last // 2, last - 1):
        kept = Kept(tmp_path / f"kept{end}")

        def progress(done: int, total: int, what: str, kept: Kept = kept, end: int = end) -> None:
            if len(kept.steps) == end:
                raise Killed

        with pytest.raises(Killed):
            run(f"half{end}", kept, progress)
        known = kept.steps[-1]
        assert 0 < known < rows
        assert run(f"again{end}", kept) == whole
        assert sum(asked) == rows - known


def test_a_table_that_was_not_asked_for_again_is_kept_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_rows, "CHECKPOINT_MINUTES", -1)
    checkpoints = Kept(tmp_path)

    def ask(kept: KeptRows, name: str) -> np.ndarray:
        table = kept.table(name, 4)
        rows = table.missing([1, 3])
        values = lambda rows: {"value": np.array(rows, dtype=np.float32)}  # noqa: E731
        kept.ask(table, rows, [[0], [1]] if len(rows) else [], values, "rows")
        return table.column("value")

    ask(KeptRows(checkpoints, silent), "first")
    ask(KeptRows(checkpoints, silent), "second")
    third = KeptRows(checkpoints, silent)
    for name in ("first", "second"):
        found = third.table(name, 4)
        assert found.missing(range(4)).tolist() == [0, 2]
        assert np.array_equal(found.column("value"), [np.nan, 1, np.nan, 3], equal_nan=True)
    assert np.isnan(third.table("none", 2).column("value")).all()
