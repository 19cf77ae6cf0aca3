"""What MLflow shows of a run is held against its artifacts, also what the run shows of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lineages import Writer
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.proof.told import told_wrongly
from resprout.infra.store.store import ArtifactStore


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

    assert list(told_wrongly(store, "top", states(2.0))) == []
    (told,) = [*told_wrongly(store, "top", states(3.0))] or [""]
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

    assert len([*told_wrongly(store, "top", states({}))]) == wrong
    assert len([*told_wrongly(store, "top", states({"hf_bytes": {"value": 3.0}}))]) == 1
