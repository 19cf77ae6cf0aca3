"""The state of runs in MLflow: its addresses, its differences, and stage runs that contradict artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lineages import Writer
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.provenance.mlflow_state import Locations, differences, mask_locations, stage_run_problems
from resprout.infra.store.store import ArtifactStore

HERE = Locations("file:///home/store", "file:///home/mlartifacts")


@pytest.mark.parametrize(
    ("stage", "label", "metric", "above"),
    [
        ("evaluate", "evaluate pruned", "words_ppl", "pruned.words_ppl"),
        ("measure", "measure", "pruned.decode4_tokens_per_s", "pruned.decode4_tokens_per_s"),
        ("measure", "measure pruned", "decode4_tokens_per_s", "pruned.decode4_tokens_per_s"),
    ],
)
def test_a_metric_that_a_run_shows_of_its_stage_is_the_artifacts(
    tmp_path: Path, stage: str, label: str, metric: str, above: str
) -> None:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "store")
    writer = Writer(store, tmp_path)
    record = writer.add("it", stage, "scores", {"metrics.json": {metric: 2.0}}, {})
    made = store.get_record(record)
    tags = {RECORD: record, "resprout.digest": made.content, "resprout.key": made.key}

    def states(shown: float) -> dict[str, Any]:
        nested = {
            "tags": {**tags, "resprout.stage": stage},
            "info": {"runName": label},
            "metrics": {metric: {"value": 2.0}},
        }
        parent = {"tags": {}, "info": {}, "metrics": {above: {"value": shown}}}
        return {"top": parent, "nested": nested}

    assert list(stage_run_problems(store, "top", states(2.0))) == []
    (told,) = [*stage_run_problems(store, "top", states(3.0))] or [""]
    assert told == f"MLflow run top: metric {above} is not that of artifact {made.content}"


@pytest.mark.parametrize(("status", "wrong"), [("FINISHED", 1), ("RUNNING", 0), ("FAILED", 0)])
def test_a_run_that_was_cut_off_may_lack_a_metric_but_shows_no_other(
    tmp_path: Path, status: str, wrong: int
) -> None:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "store")
    record = Writer(store, tmp_path).add("it", "export", "model", {"metrics.json": {"hf_bytes": 2.0}}, {})
    made = store.get_record(record)
    tags = {RECORD: record, "resprout.digest": made.content, "resprout.key": made.key}

    def states(metrics: dict[str, Any]) -> dict[str, Any]:
        info = {"runName": "export", "status": status}
        nested = {"tags": {**tags, "resprout.stage": "export"}, "info": info, "metrics": metrics}
        return {"top": {"tags": {}, "info": {}, "metrics": {}}, "nested": nested}

    assert len([*stage_run_problems(store, "top", states({}))]) == wrong
    assert len([*stage_run_problems(store, "top", states({"hf_bytes": {"value": 3.0}}))]) == 1


def test_a_place_that_moved_changes_no_fact() -> None:
    there = Locations("s3://bucket/team", "s3://bucket/runs")
    here = {"uri": "file:///home/store/content/x", "files": ["file:///home/mlartifacts/1"]}
    moved = {"uri": "s3://bucket/team/content/x", "files": ["s3://bucket/runs/1"]}
    assert mask_locations(here, HERE) == {"uri": "{store}/content/x", "files": ["{artifacts}/1"]}
    assert mask_locations(moved, there) == mask_locations(here, HERE)
    assert mask_locations("file:///home/store-of-others/x", HERE) == "file:///home/store-of-others/x"
    assert mask_locations("{store}/content/x", HERE) != mask_locations("file:///home/store/content/x", HERE)
    assert mask_locations("s3://evil/file:///home/store/x", HERE) == "s3://evil/file:///home/store/x"


def test_differences_name_each_fact() -> None:
    then = {"a": {"b": "1", "c": "2"}, "gone": 1}
    assert list(differences(then, {"a": {"b": "1", "c": "3"}, "new": 2}, "run")) == [
        "run a c was changed: it was '2' and is '3'",
        "run gone was removed",
        "run new was added",
    ]
    assert list(differences(then, then)) == []
