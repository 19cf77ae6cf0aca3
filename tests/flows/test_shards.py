"""Shards: the same bytes whoever made them, each kept by itself, and no secret on the way to a worker."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
from resprout.configs.errors import BadInput, StageFailed, Transient, Unreachable
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import Loaded, arrived, load, travelling
from resprout.flows.check import require_extra
from resprout.flows.runners import lost
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.job import Job, Share
from servers import free_port
from tiny_run import write_run
from toys import Knobs, whole

TIMED = ("measure", "report")
"""Stages whose content shows timings, so that two runs differ there."""


def digests(result: Any) -> dict[str, str]:
    return {
        stage["name"]: stage["artifact"]["digest"]
        for stage in result["stages"]
        if not stage["name"].startswith(TIMED)
    }


def records(home: Path, stage: str) -> dict[str, Record]:
    store = ArtifactStore.from_config(InfraConfig().store, home)
    return {identity: record for identity, record in store.records() if record.stage == stage}


def test_a_share_is_contiguous_and_the_shares_are_all() -> None:
    for items in (0, 1, 5, 16, 17):
        for count in (1, 2, 3, 7, 20):
            shares = [Share(index, count).of(items) for index in range(count)]
            assert [item for share in shares for item in share] == list(range(items))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """A tiny config with overrides, whose home is new each time."""
    config = write_run(tmp_path_factory.mktemp("config"))

    def make(*overrides: str, home: Path | None = None) -> Loaded:
        where = home or tmp_path_factory.mktemp("home")
        return load(config, [f"infra.home={where}", *overrides])

    return make


@pytest.fixture
def fan(make_run: Callable[..., Any], loaded: Callable[..., Loaded]) -> Callable[..., Any]:
    """Run `steps(run)` where the toy stage is shared out as the overrides say."""
    from resprout.flows.shards import TaskRunnerFanOut

    def call(home: Path, steps: Callable[[Any], Any], *overrides: str) -> Any:
        config = loaded(*overrides, home=home)

        def inside(run: Any) -> Any:
            run.shards = config.config.infra.shards
            run.fan_out = TaskRunnerFanOut(config, run)
            try:
                return steps(run)
            finally:
                run.fan_out.close()

        return make_run(home, inside, config.config.infra.store)

    return call


@pytest.fixture(params=("threads", "dask"))
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each task runner whose packages are here; its workers find the toys."""
    if request.param != "threads":
        pytest.importorskip(f"prefect_{request.param}", reason=f"pip install -e '.[{request.param}]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toys.__file__).parent), *python_path()]))
    return str(request.param)


def python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


@pytest.mark.parametrize("runner", ["threads", "dask", "ray"], indirect=True)
def test_shards_of_a_toy_give_the_bytes_of_one_piece(
    home: Path, fan: Callable[..., Any], runner: str
) -> None:
    def steps(run: Any) -> Any:
        made = whole(run, Job(Knobs(text="abcdefghij")))
        return made, run.store.get_record(made.record), [stage.name for stage in run.stages]

    one, _, _ = fan(home.parent / "one", steps)
    many, record, named = fan(home, steps, "infra.shards=4", "infra.workers=2", f"infra.task_runner={runner}")
    assert (many.key, many.digest) == (one.key, one.digest)
    assert named == ["toy"], "a stage that is shared out is one line of the result"
    assert [parent.role for parent in record.parents] == [f"shard-{index:06d}" for index in range(4)]
    kept = records(home, "toy-shard")
    assert {parent.record for parent in record.parents} == set(kept)
    assert sorted(one.config["share"] for one in kept.values()) == [[index, 4] for index in range(4)]


def test_a_whole_run_in_shards_is_the_run_in_one_piece(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    """Scores, selection and plan on two Dask workers, in a store of their own."""
    pytest.importorskip("prefect_dask", reason="pip install -e '.[dask]'")
    home = tmp_path / "home"
    options = ("infra.shards=3", "infra.task_runner=dask", "infra.workers=2")
    found = resprout("run", finished.config, *options, "--json", home=home)
    assert found.code == 0, found.err
    assert digests(found.result) == digests(finished.result)
    assert [stage["name"] for stage in found.result["stages"]] == [
        stage["name"] for stage in finished.result["stages"]
    ]
    counts = {
        name: len(records(home, name)) for name in ("score-shard", "divergence-shard", "evaluate-shard")
    }
    assert counts == {"score-shard": 3, "divergence-shard": 3, "evaluate-shard": 9}
    # The same store without shards finds all of it, and the plan shows no more lines.
    plan = resprout("plan", finished.config, "--json", home=home).result
    assert all(stage["cached"] for stage in plan["stages"])
    plain = resprout("plan", finished.config, "infra.shards=3", "--json", home=finished.home).result
    assert [stage["name"] for stage in plain["stages"]] == [stage["name"] for stage in plan["stages"]]
    assert all(stage["cached"] for stage in plain["stages"])


def test_shards_that_are_there_are_not_made_again(
    home: Path, fan: Callable[..., Any], tmp_path: Path, runner: str
) -> None:
    """The third of four fails once: the next call makes it and the whole, and no other."""
    log = tmp_path / "log"
    job = Job(Knobs(text="abcdefgh", log=str(log), fail=2))
    options = ("infra.shards=4", "infra.workers=1", f"infra.task_runner={runner}")
    with pytest.raises(StageFailed, match="shard 2 fails"):
        fan(home, lambda run: whole(run, job), *options)
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]
    before = records(home, "toy-shard")
    assert len(before) == 3
    Path(f"{log}.mended").touch()
    made = fan(home, lambda run: whole(run, job), *options)
    assert sorted(log.read_text().split()) == ["0", "1", "2", "2", "3"]
    assert before.items() <= records(home, "toy-shard").items()
    assert made.digest == fan(tmp_path / "one", lambda run: whole(run, job)).digest


def test_a_bad_shard_ends_in_its_own_sentence(home: Path, fan: Callable[..., Any]) -> None:
    options = ("infra.shards=2",)
    with pytest.raises(BadInput, match="no shard likes this text"):
        fan(home, lambda run: whole(run, Job(Knobs(text="bad"))), *options)


def test_workers_reach_a_bucket_with_secrets_of_their_own(
    home: Path, fan: Callable[..., Any], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies on a disk that both see but the code, and the keys come from the environment."""
    pytest.importorskip("prefect_dask", reason="pip install -e '.[dask]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toys.__file__).parent), *python_path()]))
    options = ["infra.shards=2", "infra.task_runner=dask"]
    for name, value in s3.settings("shards").items():
        if name.endswith(("key", "key_id")):
            monkeypatch.setenv(f"OWN_{name.upper()}", value)
            value = f"${{OWN_{name.upper()}}}"
        options.append(f"infra.store.{name}={value}")
    made = fan(home, lambda run: whole(run, Job(Knobs(text="abcd"))), *options)
    assert made.uri.startswith("s3://")
    assert made.digest == fan(home.parent / "one", lambda run: whole(run, Job(Knobs(text="abcd")))).digest


def test_a_shard_of_other_versions_is_refused(
    home: Path, fan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose stage has another key makes a good shard, but not the one that was asked for."""
    monkeypatch.setattr(toys, "part", replace(toys.part, libraries=("numpy",)))
    with pytest.raises(StageFailed, match=r"shard 1 of 2 of toy .*numpy [\d.]+ \(here none\).*; install"):
        fan(home, lambda run: whole(run, Job(Knobs())), "infra.shards=2")
    assert not records(home, "toy"), "it was put together all the same"


def test_a_cluster_that_does_not_answer_is_one_sentence(
    home: Path, fan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the kind that a run which nobody watches waits for."""
    pytest.importorskip("prefect_dask", reason="pip install -e '.[dask]'")
    monkeypatch.setattr("resprout.flows.runners.CONNECT_SECONDS", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    options = ("infra.shards=2", "infra.task_runner=dask", f"infra.dask_address={address}")
    with pytest.raises(Unreachable, match=f"infra.dask_address {address} does not answer"):
        fan(home, lambda run: whole(run, Job(Knobs())), *options)


@pytest.mark.parametrize("back", [True, False])
def test_a_cluster_that_is_lost_is_connected_to_again(
    home: Path, fan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """Its scheduler dies while it makes shards; on the next try another is there, or none."""
    monkeypatch.setattr("resprout.flows.runners.CONNECT_SECONDS", 5.0)
    distributed = pytest.importorskip("distributed", reason="pip install -e '.[dask]'")
    port, log = free_port(), tmp_path / "log"
    clusters = []

    def cluster() -> None:
        # Workers in threads of this process, so that they know the toys.
        clusters.append(
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
                scheduler_port=port, dashboard_address=None,
            )
        )  # fmt: skip

    def break_down() -> None:
        while not log.exists():
            time.sleep(0.05)
        clusters[0].close()
        if back:
            cluster()

    cluster()
    breaker = threading.Thread(target=break_down)
    breaker.start()
    job = Job(Knobs(text="abcd", log=str(log), seconds=1.0))
    options = ("infra.shards=4", "infra.task_runner=dask", f"infra.dask_address=tcp://127.0.0.1:{port}")

    def steps(run: Any) -> Any:
        return whole(replace(run, retries=3, retry_delay_seconds=1.0), job)

    try:
        if back:
            plain = fan(tmp_path / "one", lambda run: whole(run, Job(Knobs(text="abcd"))))
            assert fan(home, steps, *options).digest == plain.digest
        else:
            with pytest.raises(Unreachable, match="does not answer"):
                fan(home, steps, *options)
    finally:
        breaker.join()
        for one in clusters:
            one.close()


def test_faults_of_a_runner_are_sentences_of_ours() -> None:
    for error, kind, words in (
        (StageFailed("its own"), StageFailed, "its own"),
        (type("KilledWorker", (Exception,), {})("w"), StageFailed, "for want of memory"),
        (type("NodeDiedError", (Exception,), {})("n"), Transient, "cluster was lost before shard 1"),
        (ConnectionResetError("gone"), Transient, "ConnectionResetError: gone"),
        (CancelledError("lost dependencies"), Transient, "what was finished is kept"),
        (ValueError("what"), StageFailed, "did not bring back shard 1 .ValueError: what."),
    ):
        found = lost(error, "shard 1")
        assert type(found) is kind
        assert re.search(words, str(found))


def test_a_cluster_that_does_not_stop_costs_no_result(
    home: Path, fan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from resprout.flows import runners, shards

    @contextmanager
    def stubborn(infra: InfraConfig) -> Iterator[Any]:
        with runners.started(infra) as runner:
            yield runner
        raise OSError("still here")

    monkeypatch.setattr(shards, "started", stubborn)
    assert fan(home, lambda run: whole(run, Job(Knobs())), "infra.shards=2")
    assert "did not stop cleanly: still here" in caplog.text


def test_a_shard_on_a_thread_logs_as_part_of_its_run(prefect_server: None) -> None:
    from prefect import flow, task

    from resprout.flows.runners import started, submit
    from resprout.infra import logs

    @task
    def said() -> dict[str, str]:
        return dict(logs.known())

    @flow
    def parent() -> dict[str, str]:
        with started(InfraConfig()) as runner, logs.fields(mlflow_run="m-1", run="tiny"):
            return submit(runner, said, {}).result()

    assert parent() == {"mlflow_run": "m-1", "run": "tiny"}


@pytest.mark.faults
def test_a_killed_dask_worker_costs_its_shard_only(
    home: Path, fan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="pip install -e '.[dask]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toys.__file__).parent), *python_path()]))
    log = tmp_path / "log"
    job = Job(Knobs(text="abcdefghijkl", log=str(log), die=4))
    options = ("infra.shards=6", "infra.workers=2", "infra.task_runner=dask")
    made = fan(home, lambda run: whole(run, job), *options)
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3", "4", "4", "5"], "one shard ran twice"
    assert len(records(home, "toy-shard")) == 6, "no shard was published twice"
    assert made.digest == fan(tmp_path / "one", lambda run: whole(run, job)).digest


def test_one_shard_starts_no_cluster(
    home: Path, fan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resprout.flows.shards.started", lambda infra: pytest.fail("started"))
    fan(home, lambda run: whole(run, Job(Knobs())), "infra.task_runner=dask", "infra.workers=2")
    # Nor is one started where the stage is found.
    found = fan(home, lambda run: (whole(run, Job(Knobs())), run.stages[0].cached), "infra.shards=4")
    assert found[1] is True


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for runner in ("dask", "ray"):
        with pytest.raises(BadInput, match=rf"pip install .*prefect-{runner}"):
            require_extra(InfraConfig(task_runner=runner))
    require_extra(InfraConfig())


SECRET = "hunter2-hunter2"


def test_no_secret_travels(loaded: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESPROUT_INFRA__MLFLOW__PASSWORD", SECRET)
    monkeypatch.setenv("MY_KEY", SECRET)
    place = ("infra.store.uri=s3://bucket/x", "infra.store.secret_access_key=${MY_KEY}")
    found = loaded(*place, "infra.task_runner=dask")
    assert found.config.infra.store.secret_access_key is not None
    sent = travelling(found)
    assert SECRET not in json.dumps(sent)
    there = arrived(sent, {"RESPROUT_INFRA__MLFLOW__PASSWORD": "its own", "MY_KEY": "another"})
    assert there.mlflow.password is not None
    assert there.mlflow.password.get_secret_value() == "its own"
    assert there.store.secret_access_key is not None
    assert there.store.secret_access_key.get_secret_value() == "another"
    assert (there.store.uri, there.home) == ("s3://bucket/x", str(found.home))
    with pytest.raises(BadInput, match="the environment variable MY_KEY is not set"):
        arrived(sent, {"RESPROUT_INFRA__MLFLOW__PASSWORD": "its own"})


def test_an_address_with_a_password_stays_here(
    loaded: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://me:{SECRET}@127.0.0.1:5000"
    with pytest.raises(BadInput, match="set RESPROUT_INFRA__MLFLOW__TRACKING_URI here and on each") as caught:
        travelling(loaded(f"infra.mlflow.tracking_uri={address}", "infra.task_runner=dask"))
    assert SECRET not in str(caught.value)
    assert travelling(loaded(f"infra.mlflow.tracking_uri={address}")) == {}, "threads are sent nothing"
    monkeypatch.setenv("RESPROUT_INFRA__MLFLOW__TRACKING_URI", address)
    sent = travelling(loaded("infra.task_runner=dask"))
    assert SECRET not in json.dumps(sent)
    assert arrived(sent).mlflow.tracking_uri == address


def test_an_address_with_a_password_is_refused_before_anything_runs(loaded: Callable[..., Loaded]) -> None:
    from resprout.flows.check import check

    options = (f"infra.mlflow.tracking_uri=http://me:{SECRET}@127.0.0.1:5000", "infra.task_runner=dask")
    check(loaded(*options))
    with pytest.raises(BadInput, match="set RESPROUT_INFRA__MLFLOW__TRACKING_URI here and on each"):
        check(loaded(*options, "infra.shards=2"))


def test_a_run_whose_shards_cannot_be_handed_out_is_closed_in_mlflow(
    home: Path, loaded: Callable[..., Loaded], prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from resprout.flows.compress import compress_here
    from resprout.flows.session import Session

    def refuse(*_: Any) -> None:
        raise BadInput("not with these")

    monkeypatch.setattr("resprout.flows.compress.TaskRunnerFanOut", refuse)
    session = Session()
    with pytest.raises(BadInput, match="not with these"):
        compress_here(loaded("infra.shards=2", home=home), [], session)
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    assert client.get_run(str(session.result.mlflow_run_id)).info.status == "FAILED"


def test_what_prefect_sends_with_a_task_holds_no_secret(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a runner would pickle for another process: Prefect itself would send its keys."""
    from cloudpickle import dumps
    from prefect import flow
    from prefect.context import serialize_context
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
    from prefect.task_runners import TaskRunner

    from resprout.flows.runners import submit
    from resprout.flows.shards import MAKE

    sent: list[bytes] = []

    class Wire(TaskRunner[Any]):
        def duplicate(self) -> Any:
            return self

        def submit(self, task: Any, parameters: dict[str, Any], *rest: Any) -> Any:
            sent.append(dumps(serialize_context()))

    @flow
    def parent(secret: str) -> None:
        assert SECRET.encode() in dumps(serialize_context()), "the test would see a secret"
        submit(Wire(), MAKE, {})

    with temporary_settings({PREFECT_API_KEY: SECRET, PREFECT_API_AUTH_STRING: f"me:{SECRET}"}):
        parent(SECRET)
        url = PREFECT_API_URL.value()
    (data,) = sent
    assert SECRET.encode() not in data
    context = pickle.loads(data)  # noqa: S301
    assert context["settings_context"]["settings"] == {"api": {"url": url}}
    assert context["flow_run_context"]["flow_run"]["name"]
    # A worker takes the keys from its own environment.
    from prefect.context import SettingsContext

    monkeypatch.setenv("PREFECT_API_KEY", "the worker's")
    there = SettingsContext(**context["settings_context"]).settings
    assert there.api.url == url
    assert there.api.key is not None
    assert there.api.key.get_secret_value() == "the worker's"
