"""Live curves on a real SQLite database: batches, attempts that go on, and points that are not doubled."""

from __future__ import annotations

import time
from typing import Any

import pytest

from resprout.configs.errors import Transient
from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow import live_curves
from resprout.infra.mlflow.live_curves import LiveCurves
from resprout.infra.mlflow.tracking import Point, Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    made = Tracker(MlflowConfig(experiment="tests"), tmp_path_factory.mktemp("home"))
    made.connect()
    return made


@pytest.fixture
def parent(tracker: Tracker) -> str:
    return tracker.start("parent", {})


def curves(tracker: Tracker, parent: str, key: str = "k") -> LiveCurves:
    return LiveCurves(tracker, parent, "recover", key, {"resprout.stage": "recover", "resprout.key": key})


def points(tracker: Tracker, run_id: str | None, name: str = "loss") -> list[tuple[int, float]]:
    assert run_id is not None
    return sorted((one.step, one.value) for one in tracker.client.get_metric_history(run_id, name))


def children(tracker: Tracker, parent: str) -> list[Any]:
    return list(
        tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    )


def test_many_steps_are_few_batches_and_each_counts_once(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_curves, "BATCH_SECONDS", 0.2)
    sent: list[int] = []
    real = tracker.log_points
    monkeypatch.setattr(tracker, "log_points", lambda *given: (sent.append(len(given[1])), real(*given)))
    live = curves(tracker, parent)
    began = time.monotonic()
    for step in range(200):
        live(step, {"loss": 1.0 / (step + 1), "rate": 0.1})
        live(step, {"loss": 7.0})
        time.sleep(0.002)
    assert live.close() == []
    assert sum(sent) == 400
    assert len(sent) <= 2 + (time.monotonic() - began) / 0.2
    assert points(tracker, live.run_id) == [(step, 1.0 / (step + 1)) for step in range(200)]
    assert {name for name, _ in live.shown} == {"loss", "rate"}


def test_without_numbers_no_run_begins(tracker: Tracker, parent: str) -> None:
    live = curves(tracker, parent)
    assert live.close() == []
    live.end(ValueError())
    assert (live.run_id, children(tracker, parent)) == (None, [])


def test_the_next_attempt_goes_on_with_the_run_and_doubles_no_step(tracker: Tracker, parent: str) -> None:
    first = curves(tracker, parent)
    for step in range(1, 6):
        first(step, {"loss": 1.0 / step})
    first.end(KeyboardInterrupt())
    other = curves(tracker, parent, key="other")
    other(1, {"loss": 9.0})
    other.close()
    # Its last checkpoint was that of step 3.
    second = curves(tracker, parent)
    for step in range(4, 9):
        second(step, {"loss": 1.0 / step})
    assert second.close() == []
    assert second.run_id == first.run_id
    assert other.run_id != first.run_id
    assert points(tracker, first.run_id) == [(step, 1.0 / step) for step in range(1, 9)]
    assert second.shown == {("loss", step) for step in range(1, 9)}
    assert tracker.run(first.run_id or "").info.status == "RUNNING"
    tracker.end(first.run_id or "")
    third = curves(tracker, parent)
    third(1, {"loss": 1.0})
    third.close()
    assert third.run_id != first.run_id, "what is finished stays as it is"


def test_a_server_that_hangs_does_not_hold_up_the_end(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_curves, "BATCH_SECONDS", 0.01)
    monkeypatch.setattr(live_curves, "LAST_SECONDS", 0.2)

    def hangs(*given: Any) -> None:
        time.sleep(1.0)
        raise Transient("MLflow does not answer")

    monkeypatch.setattr(tracker, "log_points", hangs)
    live = curves(tracker, parent)
    began = time.monotonic()
    live(1, {"loss": 1.0})
    assert time.monotonic() - began < 0.2
    time.sleep(0.1)
    began = time.monotonic()
    assert [(one.name, one.step) for one in live.close()] == [("loss", 1)]
    assert time.monotonic() - began < 0.8
    time.sleep(1.2)
    assert caplog.text.count("the curves of recover wait") == 1


def test_a_point_that_is_sent_twice_is_there_once(tracker: Tracker, parent: str) -> None:
    live = curves(tracker, parent)
    live(1, {"loss": 1.0})
    live.close()
    for _ in range(2):
        tracker.log_points(live.run_id or "", [Point("loss", 2.0, 1000, 2)])
    assert points(tracker, live.run_id) == [(1, 1.0), (2, 2.0)]
