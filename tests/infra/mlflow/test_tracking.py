"""The tracker on a real SQLite database: runs, registry, and a server that is not there."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput, StageFailed, Transient, Unreachable
from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow.tracking import FLOW_RUN, VARIANT, Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    made = Tracker(MlflowConfig(experiment="tests"), tmp_path_factory.mktemp("home"))
    made.connect()
    return made


def test_a_run_holds_what_was_logged(tracker: Tracker) -> None:
    parent = tracker.start("parent", {"a": "b"})
    child = tracker.start("child", {}, parent=parent)
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    many = {f"p{index}": index for index in range(150)}
    tracker.log(child, {"x": 1.0}, many, {"t": "v"}, history)
    tracker.end(child)
    run = tracker.run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.metrics == {"x": 1.0, "loss": 1.5}
    assert len(run.data.params) == 150
    assert [(m.step, m.value) for m in tracker.client.get_metric_history(child, "loss")] == [
        (1, 2.0),
        (2, 1.5),
    ]


def test_a_run_is_found_again_by_its_tag_and_opened(tracker: Tracker) -> None:
    run_id = tracker.start("variant", {VARIANT: "sweep-1/a"})
    tracker.end(run_id, "FAILED")
    assert tracker.resume(VARIANT, "sweep-1/b") is None
    assert tracker.resume(FLOW_RUN, "sweep-1/a") is None
    assert tracker.resume(VARIANT, "sweep-1/a") == run_id
    assert tracker.run(run_id).info.status == "RUNNING"


def test_a_run_with_other_params_is_not_gone_on_with(tracker: Tracker) -> None:
    run_id = tracker.start("variant", {FLOW_RUN: "changed"})
    tracker.log(run_id, params={"rank": 8, "learning_rate": 1e-4})
    tracker.end(run_id, "FAILED")
    assert tracker.resume(FLOW_RUN, "changed", {"rank": 16, "learning_rate": 1e-4}) is None
    assert tracker.run(run_id).info.status == "FAILED"
    assert tracker.resume(FLOW_RUN, "changed", {"rank": 8, "learning_rate": 1e-4, "epochs": 1.0}) == run_id
    tracker.log(run_id, params={"rank": 8, "learning_rate": 1e-4, "epochs": 1.0})
    assert tracker.run(run_id).data.params == {"rank": "8", "learning_rate": "0.0001", "epochs": "1.0"}


def test_an_experiment_is_one_of_model_training_and_named_without_a_path(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / ".resprout", tmp_path / "project" / ".resprout"
    for home in (first, second):
        tracker = Tracker(MlflowConfig(), home)
        if home == second:
            second.parent.mkdir()
            shutil.move(first, second)
        tracker.connect()
        experiment = tracker.client.get_experiment(tracker.experiment_id)
        assert experiment.tags.get("mlflow.experimentKind") == "custom_model_development"
        assert experiment.name == ("resprout" if home == first else "resprout in project")
        run = tracker.run(tracker.start("one", {}))
        assert run.data.tags.get("mlflow.source.name") == "resprout"
    shutil.move(second, tmp_path / "again")
    (tmp_path / "x" / "project").mkdir(parents=True)
    third = shutil.move(tmp_path / "again", tmp_path / "x" / "project" / ".resprout")
    tracker = Tracker(MlflowConfig(), Path(third))
    tracker.connect()
    assert tracker.client.get_experiment(tracker.experiment_id).name == "resprout in project 2"
    assert len(tracker.experiments()) == 3


def test_the_page_of_a_run_opens_as_one_of_model_training(tmp_path: Path) -> None:
    tracker = Tracker(MlflowConfig(tracking_uri="http://127.0.0.1:5000"), tmp_path)
    tracker.experiment_id = "1"
    page = "http://127.0.0.1:5000/#/experiments/1/runs/ab?workflowType=machine_learning"
    assert tracker.page("ab") == page


def test_an_experiment_without_a_kind_gets_one_and_a_users_own_stays(tmp_path: Path) -> None:
    tracker = Tracker(MlflowConfig(), tmp_path)
    tracker.connect()
    for before, after in ((None, "custom_model_development"), ("finetuning", "finetuning")):
        tracker.client.delete_experiment_tag(tracker.experiment_id, "mlflow.experimentKind")
        if before is not None:
            tracker.client.set_experiment_tag(tracker.experiment_id, "mlflow.experimentKind", before)
        tracker.connect()
        tags = tracker.client.get_experiment(tracker.experiment_id).tags
        assert tags.get("mlflow.experimentKind") == after


def test_a_run_is_closed_by_how_its_block_ends(tracker: Tracker) -> None:
    for error, status in ((None, "FINISHED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        run_id = tracker.start("r", {})
        if error is None:
            with tracker.running(run_id):
                pass
        else:
            with pytest.raises(type(error)), tracker.running(run_id):
                raise error
        assert tracker.run(run_id).info.status == status


def test_versions_are_found_by_digest_and_an_alias_moves_once(tracker: Tracker) -> None:
    run_id = tracker.start("r", {})
    first = tracker.make_version("m", "file:///tmp/a", run_id, {"resprout.digest": "a"}, "about")
    second = tracker.make_version("m", "file:///tmp/b", run_id, {"resprout.digest": "b"}, "about")
    assert tracker.holding("m", "c") == []
    found = tracker.holding("m", "a")[0]
    assert found is not None
    assert str(found.version) == str(first.version)
    tracker.point_alias("m", "candidate", str(first.version))
    tracker.point_alias("m", "candidate", str(second.version))
    assert str(tracker.version("models:/m@candidate").version) == str(second.version)
    assert tracker.version(f"models:/m/{first.version}").source == "file:///tmp/a"
    calls = []
    original = tracker.client.set_registered_model_alias
    tracker.client.set_registered_model_alias = lambda *given: calls.append(given) or original(*given)
    try:
        tracker.point_alias("m", "candidate", str(second.version))
    finally:
        tracker.client.set_registered_model_alias = original
    assert not calls, "an alias that stands is not set again"


def test_a_missing_version_is_one_sentence(tracker: Tracker) -> None:
    for reference in ("models:/none@candidate", "models:/none/1"):
        with pytest.raises(BadInput, match="no model version"):
            tracker.version(reference)


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_home_elsewhere_keeps_its_runs_and_its_new_artifacts(tmp_path: Path, copied: bool) -> None:
    def at(home: Path) -> Tracker:
        made = Tracker(MlflowConfig(), home)
        made.connect()
        return made

    first, second = tmp_path / "a", tmp_path / "b"
    before = at(first)
    old = before.start("old", {"resprout.record": "r1", "resprout.cached": "false"})
    before.log_text(old, "text", "a.txt")
    assert at(first).experiment_id == before.experiment_id
    (shutil.copytree if copied else shutil.move)(first, second)

    after = at(second)
    new = after.start("new", {})
    after.log_text(new, "text", "b.txt")
    uri = after.run(new).info.artifact_uri
    assert uri.startswith(second.as_uri())
    assert (Path(uri.removeprefix("file://")) / "b.txt").read_text() == "text"
    assert first.exists() == copied, "nothing is written where the home was"
    assert after.run(old).info.run_name == "old"
    found = after.producer("r1")
    assert found is not None
    assert found.info.run_id == old, "a stage found in the cache still names the run that made it"
    again = at(second)
    assert again.experiment_id == after.experiment_id
    if not copied:
        shutil.move(second, first)
        assert at(first).experiment_id == before.experiment_id, "back in its place it goes on as before"


def test_a_database_that_the_config_names_keeps_its_one_experiment(tmp_path: Path) -> None:
    shared = MlflowConfig(tracking_uri=f"sqlite:///{tmp_path / 'shared.db'}")
    one, other = Tracker(shared, tmp_path / "a"), Tracker(shared, tmp_path / "b")
    one.connect()
    other.connect()
    assert one.experiment_id == other.experiment_id


def test_a_missing_run_is_one_sentence(tracker: Tracker) -> None:
    with pytest.raises(BadInput, match=rf"no run {'0' * 32} in MLflow at sqlite.*; give the id of a run"):
        tracker.run("0" * 32)


def test_an_unreachable_server_is_said_within_twenty_seconds(tmp_path: Path) -> None:
    dead = Tracker(MlflowConfig(tracking_uri="http://user:hunter2@127.0.0.1:9"), tmp_path)
    began = time.monotonic()
    with pytest.raises(BadInput, match=r"http://127\.0\.0\.1:9 cannot be used") as caught:
        dead.connect()
    assert time.monotonic() - began < 20
    assert "hunter2" not in str(caught.value).split("(")[0]


def test_a_fault_in_the_middle_says_that_nothing_is_lost(tracker: Tracker) -> None:
    with pytest.raises(StageFailed, match="what was computed is in the artifact store"):
        tracker.log("0" * 32, {"x": 1.0})


@pytest.mark.parametrize("uri", ["nosuchdatabase://host/x", "oracle+missing://host/x"])
def test_a_database_without_a_driver_is_no_outage(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BadInput, match=r"check infra\.mlflow: tracking_uri") as caught:
        Tracker(MlflowConfig(tracking_uri=uri), tmp_path).connect()
    assert not isinstance(caught.value, Unreachable)


def test_a_server_that_refuses_is_no_outage(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(BadInput, match=r"refuses .*username and password") as caught:
            Tracker(MlflowConfig(tracking_uri=address), tmp_path).connect()
        server.shutdown()
    assert not isinstance(caught.value, Unreachable)


def test_a_full_disk_is_no_outage(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start("one", {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tracker.client, "log_text", full)
    with pytest.raises(StageFailed, match="No space left on device"):
        tracker.log_text(run, "x", "x.txt")
    monkeypatch.setattr(tracker.client, "log_text", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(Transient, match="gone"):
        tracker.log_text(run, "x", "x.txt")


def test_a_database_that_is_not_there_is_told_at_once_and_without_its_password(tmp_path: Path) -> None:
    uri = "postgresql+psycopg2://me:planted-7710@127.0.0.1:9/db?connect_timeout=2"
    began = time.monotonic()
    with pytest.raises(Unreachable, match="start it, or set infra") as error:
        Tracker(MlflowConfig(tracking_uri=uri), tmp_path).connect()
    assert time.monotonic() - began < 20
    assert "planted-7710" not in str(error.value)
