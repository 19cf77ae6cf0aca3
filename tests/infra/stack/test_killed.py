"""kill -9 of any part, of everything, and of a worker with its run: the stack and the run go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from one_machine import Machine, running, until
from resprout.infra.stack.launch import run_ids, stack_mark, stack_processes
from tiny_run import write_run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with running(Machine(tmp_path_factory.mktemp("stack"))) as machine:
        yield machine


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)


def worker_and_runs(machine: Machine) -> list[psutil.Process]:
    return [process for process, part in stack_processes(stack_mark(machine.home)) if part == "worker"]


def tasks(machine: Machine, run: str, *states: str) -> list[dict[str, Any]]:
    """Task runs of a flow run, oldest first."""
    state = {"state": {"type": {"any_": list(states)}}} if states else {}
    query = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": state, "sort": "EXPECTED_START_TIME_ASC"}
    return machine.post("task_runs/filter", query)


def in_a_stage(machine: Machine, run: str) -> None:
    """Wait until the run has finished a few stages and is in the next."""
    until(lambda: len(tasks(machine, run, "COMPLETED")) >= 8, 90)


@pytest.mark.parametrize("part", ["prefect", "mlflow", "worker"])
def test_a_part_that_was_killed_starts_again(stack: Machine, part: str) -> None:
    before = stack.parts()
    kill(psutil.Process(before[part]["pid"]))
    began = time.monotonic()
    stack.healthy_again(part, before[part]["pid"])
    print(f"{part} again in {time.monotonic() - began:.1f} s")
    until(lambda: all(one["healthy"] for one in stack.parts().values()), 60)
    others = {name: one["pid"] for name, one in stack.parts().items() if name != part}
    assert others == {name: one["pid"] for name, one in before.items() if name != part}


def test_after_a_kill_of_everything_up_goes_on(stack: Machine) -> None:
    stack.post("variables/", {"name": "kept", "value": "yes"})
    before = stack.processes()
    kill(*before)
    until(lambda: not stack.processes(), 10)
    assert stack("up", "--status").returncode == 1
    done = stack("up")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in stack.post("variables/filter", {})] == ["kept"]


def test_up_takes_over_from_parts_that_outlived_their_supervisor(stack: Machine) -> None:
    before = stack.parts()
    kill(*(process for process, part in stack_processes(stack_mark(stack.home)) if not part))
    until(lambda: stack("up", "--status").returncode == 1, 10)
    assert psutil.pid_exists(before["prefect"]["pid"])
    done = stack("up")
    assert done.returncode == 0, done.stderr
    after = stack.parts()
    assert not {one["pid"] for one in before.values()} & {one["pid"] for one in after.values()}
    assert not [one for one in before.values() if psutil.pid_exists(one["pid"])]


def test_a_run_whose_worker_was_killed_with_it_goes_on_by_itself(stack: Machine, tmp_path: Path) -> None:
    run = stack.deploy(write_run(tmp_path), "--run")["flow_run"]
    in_a_stage(stack, run)
    finished = {one["id"]: one["name"] for one in tasks(stack, run, "COMPLETED")}
    began = time.monotonic()
    kill(*worker_and_runs(stack))
    states = stack.ends(run)
    print(f"crashed to completed in {time.monotonic() - began:.1f} s: {states}")
    assert states[-1] == "Completed"
    assert states.index("Crashed") < states.index("Restarting")
    second = {one["name"]: one["state_name"] for one in tasks(stack, run) if one["id"] not in finished}
    again = {name: second[name] for name in finished.values()}
    assert again == dict.fromkeys(again, "Cached"), "a finished stage was done twice"


def test_a_run_that_falls_silent_is_marked_and_goes_on(stack: Machine, tmp_path: Path) -> None:
    """As when a whole machine is lost: nobody is left to tell the server, until another worker takes over."""
    run = stack.deploy(write_run(tmp_path, seed=18), "--run")["flow_run"]
    in_a_stage(stack, run)
    pid = stack.parts()["worker"]["pid"]
    worker = psutil.Process(pid)
    # A worker that stands still cannot tell of its run's end.
    worker.suspend()
    began = time.monotonic()
    kill(*(process for process in worker_and_runs(stack) if run_ids([process]) and process.pid != pid))
    until(lambda: "Restarting" in [state["name"] for state in stack.states(run)], 200)
    print(f"marked after {time.monotonic() - began:.1f} s")
    names = [state["name"] for state in stack.states(run)]
    assert names[names.index("Restarting") - 1] == "Crashed"
    kill(worker)
    assert stack.ends(run)[-1] == "Completed", stack.states(run)[-1]["message"]


def test_a_run_that_down_stopped_goes_on_with_the_next_up(stack: Machine, tmp_path: Path) -> None:
    run = stack.deploy(write_run(tmp_path, seed=19), "--run")["flow_run"]
    in_a_stage(stack, run)
    began = time.monotonic()
    assert stack("up", "--down").returncode == 0
    assert time.monotonic() - began < 40
    assert stack.processes() == []
    assert stack("up").returncode == 0
    states = stack.ends(run)
    assert states[-1] == "Completed"
    assert states.count("Running") == 2


def test_a_run_that_dies_again_and_again_is_given_up(stack: Machine, tmp_path: Path) -> None:
    config = write_run(tmp_path, seed=20, infra={"prefect": {"restarts": 1}})
    run = stack.deploy(config, "--run")["flow_run"]
    for attempt in (1, 2):
        until(lambda count=attempt: names(stack, run).count("Running") >= count and living(stack, run), 120)
        kill(*living(stack, run))
    states = stack.ends(run)
    assert states[-1] == "Failed"
    assert states.count("Restarting") == 2, ", ".join(states)
    message = stack.states(run)[-1]["message"]
    assert "died 2 times in a row, and infra.prefect.restarts is 1" in message


def names(machine: Machine, run: str) -> list[str]:
    return [state["name"] for state in machine.states(run)]


def living(machine: Machine, run: str) -> list[psutil.Process]:
    return [process for process in worker_and_runs(machine) if run_ids([process]) == [run]]
