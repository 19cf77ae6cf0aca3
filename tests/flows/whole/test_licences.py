"""Licences and the data scan in whole runs: what is denied stops first, what is known reaches the card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tiny_run import write_run

SCAN = """
def look(folder):
    text = (folder / "rows.jsonl").read_text() if (folder / "rows.jsonl").exists() else ""
    return [f"{len(text.splitlines())} rows looked at"] if text else []


def refuse(folder):
    raise ValueError("row 3 holds an address")
"""


def test_what_is_denied_stops_the_run_before_anything_is_brought_here(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    home = tmp_path / "home"
    deny = {"RESPROUT_INFRA__LICENCES__DENY": "[unknown]"}
    for verb in ("run", "plan"):
        done = resprout(verb, path, "model.licence=mit", home=home, env=deny)
        assert done.code == 2, done.err
        assert "recovery rows pool.jsonl has no known licence, which infra.licences.deny names" in done.err
        assert "source model" not in done.err
    store = home / "store"
    assert not store.exists() or not list(store.glob("content/*"))


def test_a_licence_that_is_stated_later_reaches_card_result_and_lineage_without_new_weights(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    (tmp_path / "own_scan.py").write_text(SCAN)
    env = {
        "RESPROUT_INFRA__LICENCES__WARN": "[unknown]",
        "RESPROUT_INFRA__DATA_SCAN": "own_scan:look",
        "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
    }
    done = resprout("run", finished.config, "model.licence=mit", "--json", home=home, env=env)
    assert done.code == 0, done.err
    result = done.result
    assert {one["name"] for one in result["stages"] if not one["cached"]} == {"export", "report"}
    assert "recovery rows pool.jsonl has no known licence" in result["message"]
    assert "source model" not in result["message"]
    assert "warning: recovery rows pool.jsonl has no known licence" in done.err
    for outcome, licence in ((finished.result, "unknown"), (result, "mit")):
        folder = Path(
            outcome["exports"][0]["uri"].removeprefix("file://").replace(str(finished.home), str(home))
        )
        text = (folder / "README.md").read_text()
        assert yaml.safe_load(text.split("---")[1])["license"] == licence
        assert f"| source model | model | {licence} |" in text
        assert "| calibration text | calibration.jsonl | unknown |" in text
        assert "evaluation.jsonl" not in text
    shown = resprout("lineage", "models:/tiny-pruned@candidate", home=home)
    assert "licences of model and data: mit, unknown" in shown.out
    tags = scan_tags(home, result["mlflow_run_id"])
    assert tags["acquire pool"] == ("1", "60 rows looked at")
    assert tags["acquire calibration text"] == ("0", None)
    assert set(tags) == {
        "acquire pool",
        "acquire task own",
        "acquire calibration text",
        "acquire evaluation text",
    }
    env["RESPROUT_INFRA__DATA_SCAN"] = "own_scan:refuse"
    refused = resprout("run", finished.config, home=home, env=env)
    assert refused.code == 1
    assert "infra.data_scan own_scan:refuse refuses the data: row 3 holds an address" in refused.err


def scan_tags(home: Path, run: str) -> dict[str, tuple[str, str | None]]:
    """By stage the number of findings and the findings that a run's data scan left in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_run(run).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run}'")
    return {
        one.info.run_name: (
            one.data.tags["resprout.data_scan"],
            one.data.tags.get("resprout.data_scan.found"),
        )
        for one in nested
        if "resprout.data_scan" in one.data.tags
    }
