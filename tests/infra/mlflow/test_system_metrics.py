"""MLflow's monitor writes what a run takes of its machine, and only as long as the run lasts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow.system_metrics import system_metrics
from resprout.infra.mlflow.tracking import PARENT, Tracker


def test_processor_and_memory_are_written_while_the_block_lasts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    run_id = tracker.start("run", {})
    with system_metrics(tracker, run_id):
        (nested,) = (one.info.run_id for one in tracker.running_of(f"tags.`{PARENT}` = '{run_id}'"))
        end = time.monotonic() + 30
        while len(tracker.client.get_metric_history(nested, "system/cpu_utilization_percentage")) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
    found = tracker.run(nested)
    assert found.info.status == "FINISHED"
    assert 0 < found.data.metrics["system/system_memory_usage_percentage"] <= 100
    time.sleep(0.6)
    assert tracker.run(nested).data.metrics == found.data.metrics
    assert not tracker.run(run_id).data.metrics, "MLflow's page would show them above what the run came to"
