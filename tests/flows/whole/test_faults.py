"""Kills and outages: whatever happens, the same command goes on and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import mlflow_of, versions_in
from forked import Fork, Forks
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit.verification import examine
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.store import ArtifactStore
from seeds import seed_of
from servers import free_port, mlflow_server
from tiny_run import config as tiny_config
from tiny_run import write_run

pytestmark = pytest.mark.faults

TIMED = ("measure", "report")
"""Stages whose content shows timings, so that two runs differ there."""

DRIVER = """
import json, os, signal, sys, threading, time
from pathlib import Path
fault = json.loads(sys.argv.pop(1))
met_a_lock = Path(os.environ["RESPROUT_HOME"], "met-a-lock")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name, around):
    real = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: around(real, *given, **named))

inside = threading.local()
tries = {"open": 0, "begun": 0}

def note(real, self, stage, *given):
    label = inside.label = stage.label(given[-1])
    faulty = label == fault.get("stage")
    tries["begun"] += faulty
    tries["open"] += faulty
    if fault["kind"] == "timed" and label == fault["stage"]:
        bomb = threading.Timer(fault["seconds"], die)
        bomb.daemon = True
        bomb.start()
        real(self, stage, *given)
        die()
    try:
        return real(self, stage, *given)
    finally:
        inside.label = None
        tries["open"] -= faulty

def put_folder(real, self, *given, **named):
    real(self, *given, **named)
    if fault["kind"] == "before manifest" and getattr(inside, "label", None) == fault["stage"]:
        die()

def track(real, self, stage, job, inputs, ref, role, cost):
    if fault["kind"] == "before mlflow" and stage.label(role) == fault["stage"]:
        die()
    return real(self, stage, job, inputs, ref, role, cost)

def point_alias(real, *given):
    if fault["kind"] == "before alias":
        die()
    return real(*given)

def make_version(real, *given):
    if fault["kind"] == "slow version":
        # Until the other run has met a lock of this one, however far behind it is.
        until = time.monotonic() + 120
        while not met_a_lock.exists() and time.monotonic() < until:
            time.sleep(0.1)
    return real(*given)

def try_lock(real, self, *given):
    won = real(self, *given)
    if not won:
        met_a_lock.touch()
    return won

def send(real, self, request):
    # Every request of the process fails, whichever thread sends it, until the stage's first try gave up.
    if fault["kind"] == "503" and tries["open"] and tries["begun"] == 1:
        fault["seen"] = fault.get("seen", 0) + 1
    elif fault["kind"] == "503 now and then":
        fault["seen"] = fault.get("seen", 0) + 1
        if fault["seen"] % fault["every"]:
            return real(self, request)
    else:
        return real(self, request)
    import io
    from botocore.awsrequest import AWSResponse
    body = io.BytesIO(b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>")
    body.stream = lambda *_, **__: iter([body.getvalue()])
    return AWSResponse(request.url, 503, {"content-type": "application/xml"}, body)

from resprout.tasks.core.run import Run
wrap(Run, "_produce", note)
wrap(Run, "_track", track)
from resprout.infra.store.local import LocalDriver
wrap(LocalDriver, "put_folder", put_folder)
if fault["kind"].startswith("503"):
    from botocore.httpsession import URLLib3Session
    wrap(URLLib3Session, "send", send)
if fault["kind"] in ("before alias", "slow version"):
    import resprout.flows.compress
    from resprout.infra.mlflow.tracking import Tracker
    wrap(Tracker, "point_alias", point_alias)
    wrap(Tracker, "make_version", make_version)

if fault["kind"] == "slow version":
    from resprout.infra.store.lease import LeaseLockManager
    wrap(LeaseLockManager, "_try", try_lock)

from resprout.flows.cli.main import main
try:
    main()
finally:
    sys.stderr.write(f"faults: {fault.get('seen', 0)}\\n")
"""


@pytest.fixture
def drive(api_url: str, forked: Forks) -> Callable[..., Fork]:
    """Start `resprout run` with a fault in it."""

    def start(config: Path, home: Path, env: dict[str, str] | None = None, **fault: Any) -> Fork:
        settings = {
            **os.environ,
            "RESPROUT_HOME": str(home),
            "PREFECT_API_URL": api_url,
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        return forked.start([json.dumps(fault), "run", str(config), "--json"], settings, DRIVER)

    return start


def happened(err: str) -> dict[str, str]:
    """What became of each stage: cached, done, or only started."""
    found: dict[str, str] = {}
    for line in err.splitlines():
        if match := re.fullmatch(r"(.+): (found in the cache|done in .* s|started)", line):
            found[match[1]] = {"found": "cached", "done": "done"}.get(match[2].split()[0], "started")
    return found


def digests(result: Any) -> dict[str, str]:
    return {
        stage["name"]: stage["artifact"]["digest"]
        for stage in result["stages"]
        if not stage["name"].startswith(TIMED)
    }


def graph(store: ArtifactStore) -> set[Any]:
    """Records by what they say about bytes: stage, key, content, and the contents that they came from."""
    return {
        (one.stage, one.key, one.content, tuple((parent.role, parent.digest) for parent in one.parents))
        for _, one in store.records()
        if not one.stage.startswith(TIMED)
    }


def place_at(home: Path) -> Workspace:
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    return Workspace(store_at(home), tracker, home)


def store_at(home: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), home)


@pytest.mark.random
@pytest.mark.timeout(900)
def test_killed_in_every_stage_a_run_ends_with_the_same_bytes(
    finished: Any, drive: Callable[..., Any], tmp_path: Path
) -> None:
    draw = random.Random(seed_of("kills"))
    order = [(stage["name"], stage["seconds"]) for stage in finished.result["stages"]]
    steps: list[dict[str, Any]] = []
    for name, seconds in order:
        steps.append({"kind": "timed", "stage": name, "seconds": draw.uniform(0.0, seconds)})
    # Two exact points, each in a stage of its own, and one in the registration that ends a run.
    exact = draw.sample([name for name, _ in order if not name.startswith(TIMED)], 2)
    # The first kill comes before the stage's other one, which may leave its content whole, so that none is
    # put again; the second after it, because it leaves the stage finished.
    for name, kind, after in zip(exact, ("before manifest", "before mlflow"), (0, 1), strict=True):
        at = next(index for index, step in enumerate(steps) if step["stage"] == name)
        steps.insert(at + after, {"kind": kind, "stage": name})
    steps.append({"kind": "before alias", "stage": None})

    home = tmp_path / "home"
    home.mkdir()
    finish: set[str] = set()
    for step in steps:
        print(step)
        process = drive(finished.config, home, **step)
        _, err = process.communicate(timeout=200)
        assert process.returncode == -signal.SIGKILL, err
        seen = happened(err)
        reached = [name for name, _ in order[: _position(order, step["stage"])]]
        assert {name: seen.pop(name) for name in reached} == {
            name: "cached" if name in finish else "done" for name in reached
        }, "a finished stage ran again, or an unfinished one was taken for finished"
        last = "done" if step["kind"] == "before mlflow" else "started"
        assert seen in ({}, {step["stage"]: last}), "only the stage that was killed is left"
        finish.update(reached)
        if step["kind"] == "before mlflow":
            finish.add(step["stage"])
    assert versions_in(home) == [("tiny-pruned", "1")], "the last kill came between version and alias"

    process = drive(finished.config, home, kind="none")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    result = json.loads(out.strip().splitlines()[-1])
    assert all(stage["cached"] for stage in result["stages"])
    assert digests(result) == digests(finished.result)
    assert result["registered"] == finished.result["registered"]
    assert versions_in(home) == [("tiny-pruned", "1")]
    assert graph(store_at(home)) == graph(store_at(finished.home))
    looked = examine(place_at(home), "models:/tiny-pruned/1")
    assert (looked.problems, looked.artifacts) == ([], len(result["stages"]))
    client = mlflow_of(home)
    kinds = [one.experiment_id for one in client.search_experiments()]
    ghosts = client.search_runs(kinds, "attributes.status = 'RUNNING'")
    assert ghosts == [], "a run whose process was killed still says that it is running"
    left = [path for place in (home / "store" / "tmp", home / "tmp") for path in place.glob("work-*")]
    assert left == [], "a killed process left a work folder that nobody removed"


def _position(order: list[tuple[str, float]], name: str | None) -> int:
    names = [one for one, _ in order]
    return names.index(name) if name is not None else len(names)


@pytest.mark.timeout(400)
def test_two_runs_at_once_do_the_work_of_one(drive: Callable[..., Any], tmp_path: Path) -> None:
    config = write_run(tmp_path, measure=None)
    home = tmp_path / "home"
    # Both look for the version before either has made it, unless they take turns.
    both = [drive(config, home, kind="slow version") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in both]
    for process, (_, err) in zip(both, ends, strict=True):
        assert process.returncode == 0, err
    first, second = (json.loads(out.strip().splitlines()[-1]) for out, _ in ends)
    assert digests(first) == digests(second)
    for one, other in zip(first["stages"], second["stages"], strict=True):
        if one["name"] != "report":
            assert [one["cached"], other["cached"]].count(False) == 1, f"{one['name']} did not run once"
    store = store_at(home)
    kinds = [record.stage for _, record in store.records() if record.stage != "report"]
    assert len(kinds) == len(first["stages"]) - 1, "each stage has one record"
    assert versions_in(home) == [("tiny-pruned", "1")]
    assert first["registered"] == second["registered"]
    assert max(one["overhead"]["waiting_seconds"] for one in (first, second)) > 0


def small(root: Path, **changes: Any) -> Path:
    """A run of few stages."""
    evaluate = {"perplexity": tiny_config()["evaluate"]["perplexity"]}
    parts = dict.fromkeys(("select", "recover", "measure", "gate"))
    return write_run(root, **{**parts, "evaluate": evaluate, **changes})


@pytest.mark.timeout(400)
def test_an_mlflow_server_that_dies_in_the_middle(drive: Callable[..., Any], tmp_path: Path) -> None:
    config, home, port = small(tmp_path), tmp_path / "home", free_port()
    shutil.rmtree(home, ignore_errors=True)
    address = {"RESPROUT_INFRA__MLFLOW__TRACKING_URI": f"http://127.0.0.1:{port}"}
    with mlflow_server(tmp_path / "mlflow", port) as server:
        process = drive(config, home, address, kind="none")
        while "\nevaluate dense: started" not in process.err:
            assert process.poll() is None, process.err
            time.sleep(0.02)
        server.kill()
        began = time.monotonic()
        out, err = process.communicate(timeout=120)
        assert time.monotonic() - began < 60
    assert process.returncode == 1, err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"MLflow at http://127.0.0.1:{port} failed in" in sentence
    assert "run the same command again when MLflow answers" in sentence
    assert "Traceback" not in err
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["status"], result["exit_code"]) == ("failed", 1)

    with mlflow_server(tmp_path / "mlflow", port):
        process = drive(config, home, address, kind="none")
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    stages = {stage["name"]: stage["cached"] for stage in json.loads(out.strip().splitlines()[-1])["stages"]}
    kept = ("acquire model", "calibrate", "plan", "evaluate dense")
    assert {name: stages[name] for name in kept} == dict.fromkeys(kept, True)
    assert stages["export"] is False


@pytest.mark.timeout(400)
def test_a_bucket_that_answers_503_for_a_while(s3: Any, drive: Callable[..., Any], tmp_path: Path) -> None:
    config, home = small(tmp_path), tmp_path / "home"
    bucket = s3.settings(uuid.uuid4().hex)
    env = {f"RESPROUT_INFRA__STORE__{name.upper()}": value for name, value in bucket.items()}
    process = drive(config, home, env, kind="503", stage="plan")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert int(re.search(r"faults: (\d+)", err)[1]) >= 5, "one call to the bucket gives up after five tries"
    assert err.count("plan: started") > 1, "the stage itself was tried again"
    first = json.loads(out.strip().splitlines()[-1])
    assert [stage["name"] for stage in first["stages"] if stage["cached"]] == []

    again = drive(config, tmp_path / "other", env, kind="503 now and then", every=3)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert int(re.search(r"faults: (\d+)", err)[1]) > 30
    stages = json.loads(out.strip().splitlines()[-1])["stages"]
    assert [stage["name"] for stage in stages if not stage["cached"]] == [], err
