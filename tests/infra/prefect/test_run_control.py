"""Flow runs on a real server: found by name or id, followed, cancelled, scheduled again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from one_machine import until
from relaying import add_deployment
from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.prefect import run_control
from resprout.infra.prefect.flow_runs import FLOW


@pytest.fixture
def client(prefect_server: None) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def flow() -> Any:
    from prefect import flow as declare

    return declare(name=FLOW)(lambda config="", overrides=(): None)


def begin(client: Any, flow: Any, name: str, **parameters: Any) -> Any:
    """A run of a command line that is running."""
    from prefect.states import Running

    return client.create_flow_run(flow, name=name, parameters=parameters, state=Running())


def deployed(client: Any, name: str, state: Any) -> Any:
    made = add_deployment(f"deployment-{name}")
    run = client.create_flow_run_from_deployment(made, name=name)
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def unique(word: str) -> str:
    return f"{word} {uuid.uuid4().hex[:8]}"


def test_a_run_is_found_by_name_by_id_and_by_how_its_id_begins(client: Any, flow: Any) -> None:
    name = unique("tiny 2026-11-28")
    run = begin(client, flow, name)
    for reference in (name, str(run.id), str(run.id).upper(), str(run.id)[:13]):
        assert run_control.find(client, reference).id == run.id
    assert run.id in {one.id for one in run_control.listed(client)}
    with pytest.raises(BadInput, match=f"near names: .*{name}"):
        run_control.find(client, name[:-1])
    begin(client, flow, name)
    with pytest.raises(BadInput, match=f"2 flow runs are called '{name}'; give the id of one: .*{run.id}"):
        run_control.find(client, name)


def test_a_list_has_the_newest_first_and_can_have_failures_alone(client: Any, flow: Any) -> None:
    from prefect.states import Crashed, Failed, Scheduled

    good, bad = begin(client, flow, unique("good")), begin(client, flow, unique("bad"))
    client.set_flow_run_state(bad.id, Failed(message="no"), force=True)
    crashed = begin(client, flow, unique("crashed"))
    client.set_flow_run_state(crashed.id, Crashed(), force=True)
    later = client.create_flow_run_from_deployment(
        add_deployment(unique("later")), state=Scheduled(scheduled_time=soon(3600))
    )
    found = [one.id for one in run_control.listed(client)]
    assert found.index(crashed.id) < found.index(bad.id) < found.index(good.id)
    assert later.id not in found
    failed = [one.id for one in run_control.listed(client, failed=True)]
    assert failed[:2] == [crashed.id, bad.id]
    assert good.id not in failed
    assert run_control.listed(client, failed=True, limit=1)[0].id == crashed.id


def soon(seconds: float) -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_follow_shows_states_and_lines_once_and_ends_with_the_run(
    client: Any, flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Completed

    monkeypatch.setattr(run_control, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(run_control, "PAGE", 2)
    run = begin(client, flow, unique("followed"))
    log(client, run, "resprout.flows.session", 20, "plan: started")
    log(client, run, "prefect.flow_runs", 40, "Finished in state Failed")
    log(client, run, "prefect.flow_runs.worker", 20, "submitted")
    log(client, run, "prefect.flow_runs.worker", 40, "no image")
    log(client, run, "resprout.flows.compress", 40, "Traceback:\n  File x\nValueError: y")
    now = list(run_control.follow(client, run, until_end=False))
    assert [line.partition(" ")[2] for line in now] == [
        "state Running", "plan: started", "ERROR no image", "ERROR Traceback: ... ValueError: y",
    ]  # fmt: skip

    def end() -> None:
        time.sleep(0.5)
        with get_client(sync_client=True) as other:
            log(other, run, "resprout.flows.session", 20, "plan: done")
            other.set_flow_run_state(run.id, Completed(), force=True)

    ending = threading.Thread(target=end)
    ending.start()
    lines = [line.partition(" ")[2] for line in run_control.follow(client, run)]
    ending.join()
    assert lines[-2:] == ["plan: done", "state Completed"]
    assert len(lines) == len(set(lines))


def log(client: Any, run: Any, name: str, level: int, message: str) -> None:
    from prefect.client.schemas.actions import LogCreate

    client.create_logs(
        [LogCreate(name=name, level=level, message=message, timestamp=soon(0), flow_run_id=run.id)]
    )


def test_exit_codes_are_those_of_the_run() -> None:
    from prefect.states import Cancelled, Completed, Crashed, Failed

    states = [Completed(), Completed(name="Superseded"), Failed(), Crashed(), Cancelled(), None]
    assert [run_control.exit_code(one) for one in states] == [0, 0, 1, 1, 130, 1]
    assert run_control.exit_code(Failed(name="GateNotPassed")) == 3


def act_on_cancelling(client: Any, run: Any, state: Any) -> threading.Thread:
    """A worker that gives a run this state once it is told to stop it."""
    from prefect.client.orchestration import get_client

    def work() -> None:
        with get_client(sync_client=True) as own:
            until(lambda: own.read_flow_run(run.id).state.name == "Cancelling", 60)
            own.set_flow_run_state(run.id, state, force=True)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_deployed_run_is_cancelled_by_its_worker_and_one_that_waits_at_once(client: Any) -> None:
    from prefect.states import Cancelled, Completed, Running, Scheduled

    running = deployed(client, unique("running"), Running())
    client.update_flow_run(running.id, infrastructure_pid="elsewhere:1")
    worker = act_on_cancelling(client, running, Cancelled())
    assert "has stopped; finished stages are kept" in run_control.cancel(client, running)
    worker.join()
    ending = deployed(client, unique("ending"), Running())
    worker = act_on_cancelling(client, ending, Completed())
    assert "ended before its worker could stop it (Completed)" in run_control.cancel(client, ending)
    worker.join()
    waiting = deployed(client, unique("waiting"), Scheduled())
    assert "has stopped" in run_control.cancel(client, waiting)
    ended = client.read_flow_run(waiting.id)
    assert ended.state.name == "Cancelled"
    with pytest.raises(BadInput, match=r"has ended already \(Cancelled\)"):
        run_control.cancel(client, ended)


def test_without_a_worker_cancel_says_that_nobody_stops_the_run(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Running

    monkeypatch.setattr(run_control, "WORKER_SECONDS", 1.0)
    run = deployed(client, unique("alone"), Running())
    client.update_flow_run(run.id, infrastructure_pid="elsewhere:1")
    assert "no worker has stopped it within 1 s" in run_control.cancel(client, client.read_flow_run(run.id))
    assert client.read_flow_run(run.id).state.name == "Cancelling"


NAP = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_of_a_command_line_is_stopped_also_where_it_ignores_ctrl_c(client: Any, flow: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", NAP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        run = begin(client, flow, unique("local"))
        client.update_flow_run(run.id, infrastructure_pid=f"{socket.gethostname()}:{process.pid}")
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        assert "has stopped" in run_control.cancel(client, client.read_flow_run(run.id))
        reaper.join()
    assert process.returncode == 143
    assert client.read_flow_run(run.id).state.name == "Cancelled"


def test_a_clock_that_is_set_hides_no_process(
    client: Any, flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(psutil.Process, "terminate", lambda process: signals.append(process.pid))
    monkeypatch.setattr(run_control, "STOP_SECONDS", 0)
    run = begin(client, flow, unique("suspended"))
    run_control.note_process(client, run.id)
    # psutil dates this process behind the begin of the run: its clock was set forward meanwhile.
    noted = client.read_flow_run(run.id).model_copy(update={"start_time": soon(-3600)})
    assert "was told to stop" in run_control.cancel(client, noted)
    assert signals == [os.getpid()]
    # Of another start the id was given out again.
    other = noted.model_copy(update={"infrastructure_pid": f"{noted.infrastructure_pid}0"})
    assert "is gone" in run_control.cancel(client, other)
    assert signals == [os.getpid()]


def test_no_other_process_is_signalled(client: Any, flow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: Any) -> None:
        raise AssertionError(f"{process} was told to stop")

    monkeypatch.setattr(psutil.Process, "terminate", refuse)
    young = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run = begin(client, flow, unique("gone"))
        client.update_flow_run(run.id, infrastructure_pid=f"{socket.gethostname()}:{young.pid}")
        # The id of a process that is younger than the run was given out again.
        old = client.read_flow_run(run.id).model_copy(update={"start_time": soon(-3600)})
        assert "is gone" in run_control.cancel(client, old)
    finally:
        young.kill()
        young.wait()
    elsewhere = begin(client, flow, unique("elsewhere"))
    with pytest.raises(BadInput, match="was started at a command line; press Ctrl-C there"):
        run_control.cancel(client, elsewhere)
    client.update_flow_run(elsewhere.id, infrastructure_pid=f"other-host:{os.getpid()}")
    with pytest.raises(BadInput, match="at a command line on other-host"):
        run_control.cancel(client, client.read_flow_run(elsewhere.id))


def test_only_a_deployed_run_that_ended_badly_is_retried(client: Any, flow: Any) -> None:
    from prefect.states import Completed, Failed

    failed = deployed(client, unique("failed"), Failed())
    assert "is scheduled again" in run_control.retry(client, failed)
    again = client.read_flow_run(failed.id)
    assert (again.state.type.value, again.state.name) == ("SCHEDULED", "AwaitingRetry")
    with pytest.raises(BadInput, match=r"has not ended \(AwaitingRetry\)"):
        run_control.retry(client, again)
    with pytest.raises(BadInput, match="ended well"):
        run_control.retry(client, deployed(client, unique("done"), Completed()))
    local = begin(client, flow, unique("local"), config="my.yaml", overrides=["seed=3"])
    client.set_flow_run_state(local.id, Failed(), force=True)
    with pytest.raises(BadInput, match=r"run the same command again \(resprout run my\.yaml seed=3\)"):
        run_control.retry(client, client.read_flow_run(local.id))


def test_a_retry_waits_for_the_worker_s_word_on_a_run_that_was_just_cancelled(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's comes over whatever the state is by then, so that it would cancel the run again."""
    from prefect.states import Cancelled

    def worker(seconds: float) -> None:
        assert client.read_flow_run(run.id).state.name == "Cancelled"
        said.append("Flow run was cancelled successfully.")
        client.set_flow_run_state(run.id, Cancelled(message=said[-1]), force=True)

    run, said = (
        deployed(client, unique("cancelled"), Cancelled(message=run_control.PROCESS_SAYS)),
        list[str](),
    )
    # Its own name alone: the client sleeps as well, before it asks a busy server again.
    monkeypatch.setattr(run_control, "time", SimpleNamespace(sleep=worker))
    assert "is scheduled again" in run_control.retry(client, run)
    assert len(said) == 1
    assert client.read_flow_run(run.id).state.name == "AwaitingRetry"
    alone = deployed(client, unique("alone"), Cancelled(message=run_control.PROCESS_SAYS))
    monkeypatch.setattr(run_control, "SPEAKS_SECONDS", 0.0)
    assert "is scheduled again" in run_control.retry(client, alone), "there may be no worker any more"


def test_prefect_still_says_what_a_retry_waits_behind() -> None:
    import inspect

    import prefect.flow_engine

    assert f'"{run_control.PROCESS_SAYS}"' in inspect.getsource(prefect.flow_engine)


def test_without_a_server_and_without_runs_a_sentence_says_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    infra = InfraConfig.model_validate({"stack": {"prefect_port": 1}})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(BadInput, match="no flow run is known"), run_control.runs_servers(infra, tmp_path):
        pass
    assert not (tmp_path / "prefect").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("stack", "running", "asked"),
    [
        (None, False, ["own"]),
        ({}, True, ["stack"]),
        ({run_control.OWN_DATABASE: "postgresql://..."}, False, ["stack"]),
        ({run_control.OWN_DATABASE: "postgresql://..."}, True, ["stack", "own"]),
    ],
)
def test_of_a_home_the_servers_that_know_runs_are_asked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, stack: Any, running: bool, asked: list[str]
) -> None:
    @contextmanager
    def home_server(_: Any) -> Iterator[None]:
        os.environ.update({"PREFECT_API_URL": "own", run_control.CLIENT: "me:secret"})
        yield
        del os.environ["PREFECT_API_URL"], os.environ[run_control.CLIENT]

    @contextmanager
    def server(_: Any, own: tuple[str, str]) -> Iterator[str]:
        yield "own" if own[0] == "own" else "stack"

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / run_control.DATABASE).touch()
    parts = {"own_server": lambda *_: stack, "is_running": lambda _: running}
    for name, part in {**parts, "home_server": home_server, "server": server}.items():
        monkeypatch.setattr(run_control, name, part)
    with run_control.runs_servers(InfraConfig(), tmp_path) as servers:
        assert [one.client for one in servers] == asked
        assert all(str(tmp_path) in one.title for one in servers)
        known = {"stack": BadInput("not there"), "own": "the run"}

        def find(client: str, _: str) -> str:
            if isinstance(found := known[client], BadInput):
                raise found
            return found

        monkeypatch.setattr(run_control, "find", find)
        if "own" in asked:
            assert run_control.find_among(servers, "x") == ("own", "the run")
        else:
            with pytest.raises(BadInput, match="not there"):
                run_control.find_among(servers, "x")
