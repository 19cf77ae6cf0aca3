"""What begins again and goes on, and what does not begin again: a run that only seemed dead, one that was
cancelled, one without code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import walking

from one_machine import Machine, running, until
from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.prefect.automations import SETTLED_SECONDS
from resprout.infra.stack.launch import run_ids, stack_mark, stack_processes
from resprout.infra.stack.supervisor import Supervisor

pytestmark = [pytest.mark.faults, pytest.mark.timeout(500)]

NAPS = """
import time
from prefect import flow

@flow(name="compress")
def nap(seconds: float = 0.0):
    time.sleep(seconds)
"""

START = """
import sys
from prefect.client.orchestration import get_client
from naps import nap
entrypoint, seconds = sys.argv[1:]
with get_client(sync_client=True) as client:
    made = client.create_deployment(
        client.create_flow(nap), entrypoint, entrypoint=entrypoint, work_pool_name="resprout"
    )
    print(client.create_flow_run_from_deployment(made, parameters={"seconds": float(seconds)}).id)
"""

WALK = """
import sys
from prefect.client.orchestration import get_client
from walking import walk
with get_client(sync_client=True) as client:
    made = client.create_deployment(
        client.create_flow(walk), "walk", entrypoint="walking.walk", work_pool_name="resprout"
    )
    given = {"home": sys.argv[1], "stop_at": 4}
    print(client.create_flow_run_from_deployment(made, parameters=given).id)
"""

IMPATIENT = """
from resprout.infra.prefect import automations
automations.SETTLED_SECONDS = 10.0
automations.MOST_RESTARTS = 2
automations.ensure_automations()
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("naps")
    (folder / "naps.py").write_text(NAPS)
    support = str(Path(walking.__file__).parent)
    path = os.pathsep.join([str(folder), support, *filter(None, [os.environ.get("PYTHONPATH")])])
    with running(Machine(tmp_path_factory.mktemp("stack"), {"PYTHONPATH": path})) as machine:
        yield machine


def call(machine: Machine, code: str, *arguments: str) -> str:
    """What some code that talks with the server prints."""
    server = {"PREFECT_API_URL": machine.api, "PREFECT_API_AUTH_STRING": machine.auth}
    env = {**os.environ, **machine.env, **server, "RESPROUT_HOME": str(machine.home)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def living(machine: Machine, run: str) -> list[int]:
    found = (process for process, part in stack_processes(stack_mark(machine.home)) if part == "worker")
    return [process.pid for process in found if run_ids([process]) == [run]]


def names(machine: Machine, run: str) -> list[str]:
    return [state["name"] for state in machine.states(run)]


@contextmanager
def _held(pids: list[int]) -> Iterator[None]:
    """Processes that stand still meanwhile."""
    for pid in pids:
        psutil.Process(pid).suspend()
    try:
        yield
    finally:
        for pid in pids:
            psutil.Process(pid).resume()


def test_a_cancelled_run_does_not_come_back_with_a_new_worker(stack: Machine) -> None:
    run = call(stack, START, "naps.nap", "300")
    until(lambda: "Running" in names(stack, run), 60)
    worker = stack.parts()["worker"]["pid"]
    psutil.Process(worker).suspend()
    stack.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    for pid in (worker, *(pid for pid in living(stack, run) if pid != worker)):
        psutil.Process(pid).kill()
    stack.healthy_again("worker", worker)
    assert until(lambda: (found := names(stack, run))[-1] != "Cancelling" and found, 60)[-1] == "Cancelled"
    time.sleep(5)
    assert names(stack, run)[-1] == "Cancelled"


def test_a_run_that_is_cancelled_before_its_process_begins_ends(stack: Machine) -> None:
    with _held([stack.parts()["worker"]["pid"]]):
        run = call(stack, START, "naps.nap", "300")
        # A worker has taken it, and starts a process that may not begin any more.
        for state in ("PENDING", "CANCELLING"):
            stack.post(f"flow_runs/{run}/set_state", {"state": {"type": state, "name": state.capitalize()}})
        assert stack.ends(run, 90)[-1] == "Cancelled"
    assert living(stack, run) == []


def test_a_run_that_outlives_the_silence_of_the_server_is_not_begun_again(stack: Machine) -> None:
    run = call(stack, START, "naps.nap", "240")
    until(lambda: "Running" in names(stack, run), 60)
    alive = living(stack, run)
    Supervisor(stack.home).stop("prefect")
    time.sleep(120)
    # A sign of life that comes before the server has looked would keep the run Running: another case.
    with _held(alive):
        assert stack("up").returncode == 0
        until(lambda: "Crashed" in names(stack, run), 60)
    time.sleep(SETTLED_SECONDS + 10)
    assert living(stack, run) == alive
    states = stack.ends(run, 190)
    assert states[-1] == "Completed"
    assert "Restarting" not in states, ", ".join(states)


def test_a_run_that_saved_when_a_signal_came_goes_on_from_its_checkpoint(stack: Machine, home: Path) -> None:
    run = call(stack, WALK, str(home))
    until((home / "log.waits").exists, 120)
    (process,) = living(stack, run)
    psutil.Process(process).terminate()
    states = stack.ends(run, 300)
    assert states[-1] == "Completed"
    assert states.index("Crashed") < states.index("Restarting")
    assert (home / "log").read_text().split() == ["1", "2", "3", "4", "5", "6"]
    assert list((home / "store" / "checkpoints").glob("*")) == []
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    # One run of the stage, which went on, with one curve.
    (found,) = tracker.client.search_runs([tracker.experiment_id], "tags.`resprout.stage` = 'walk'")
    assert found.info.status == "FINISHED"
    points = tracker.client.get_metric_history(found.info.run_id, "loss")
    assert sorted(one.step for one in points) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_dies_before_its_code_begins_is_given_up(stack: Machine) -> None:
    call(stack, IMPATIENT)
    run = call(stack, START, "no_such_module.nap", "1")
    states = stack.ends(run, 200)
    assert states[-1] == "Failed"
    assert states.count("Restarting") == 2, ", ".join(states)
    assert "before the flow's own code began" in stack.states(run)[-1]["message"]
    time.sleep(20)
    assert names(stack, run) == states
