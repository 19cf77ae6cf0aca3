"""A stage with checkpoints that a signal ends: it saves first, and the same command goes on from there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import walking
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.prefect.automations import CRASHED, run_automations
from resprout.infra.prefect.flow_runs import RESTARTING


def started(home: Path, api_url: str, run: str = "") -> subprocess.Popen[str]:
    """A process that walks, and stops before the fourth step; as a worker starts the flow run `run`."""
    command = ("-m", "prefect.engine") if run else (walking.__file__, str(home), "4")
    return subprocess.Popen(
        [sys.executable, *command],
        env={
            **os.environ,
            "PREFECT_API_URL": api_url,
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **({"PREFECT__FLOW_RUN_ID": run} if run else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def curves(home: Path) -> dict[str, list[int]]:
    """By the status of each stage's run the steps of its curve."""
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    found: Any = tracker.client.search_runs([tracker.experiment_id], "attributes.run_name = 'walk'")
    return {
        run.info.status: sorted(
            one.step for one in tracker.client.get_metric_history(run.info.run_id, "loss")
        )
        for run in found
        if "resprout.stage" in run.data.tags
    }


def ended_in_the_middle(walk: subprocess.Popen[str], home: Path, number: int) -> str:
    """What a process said that was sent a signal before the fourth step."""
    end = time.monotonic() + 180
    while not (home / "log.waits").exists():
        assert walk.poll() is None, walk.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)
    walk.send_signal(number)
    return walk.communicate(timeout=120)[0]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_the_same_command_goes_on_from_the_step_at_which_a_signal_came(
    home: Path, api_url: str, mlflow_template: Path, number: int, code: int
) -> None:
    shutil.copy(mlflow_template, home / "mlflow.db")
    first = started(home, api_url)
    said = ended_in_the_middle(first, home, number)
    assert first.returncode == code, said
    assert [path.name[:12] for path in (home / "store" / "checkpoints").glob("*/*.json")] == ["000000000003"]
    assert curves(home) == {"KILLED": [1, 2, 3]}
    again = started(home, api_url)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert (home / "log").read_text().split() == ["1", "2", "3", "4", "5", "6"]
    assert list((home / "store" / "checkpoints").glob("*")) == []
    # The run of the second command has the whole curve: what was walked before stands in its history.
    assert curves(home) == {"KILLED": [1, 2, 3], "FINISHED": [1, 2, 3, 4, 5, 6]}


def test_a_worker_s_run_says_that_it_crashed_and_goes_on_where_the_automation_puts_it(
    home: Path, api_url: str, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, home / "mlflow.db")
    restart: Any = run_automations()["resprout: begin a crashed run again"].actions[0]
    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow(walking.walk), "walk", entrypoint="walking.walk")
        given = {"home": str(home), "stop_at": 4}
        run = client.create_flow_run_from_deployment(made, parameters=given).id
        said = ended_in_the_middle(started(home, api_url, str(run)), home, signal.SIGTERM)
        state = client.read_flow_run(run).state
        assert state is not None
        assert f"prefect.flow-run.{state.name}" == CRASHED, said
        assert curves(home) == {"KILLED": [1, 2, 3]}
        again: Any = State(type=restart.state, name=restart.name, message=restart.message)
        answer = client.set_flow_run_state(run, again, force=restart.force)
        assert (str(answer.status.value), again.name) == ("ACCEPT", RESTARTING)
        walk = started(home, api_url, str(run))
        said, _ = walk.communicate(timeout=240)
        state = client.read_flow_run(run).state
        assert state is not None
        assert state.name == "Completed", said
    assert (home / "log").read_text().split() == ["1", "2", "3", "4", "5", "6"]
    assert curves(home) == {"FINISHED": [1, 2, 3, 4, 5, 6]}, "one run of the stage, which went on"
