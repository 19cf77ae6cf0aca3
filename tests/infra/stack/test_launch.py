"""What a new worker does with runs whose process is gone, against a server of a few lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resprout.infra.prefect.flow_runs import MOST_RESTARTS
from resprout.infra.stack import launch


class Server:
    """Runs with a state, when they ended, and how often they were begun again."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.ended: dict[str, datetime] = {}
        self.restarts: dict[str, int] = {}
        self.told: dict[str, str] = {}

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path.endswith("set_state"):
            run = path.split("/")[-2]
            self.state[run], self.told[run] = body["state"]["type"], body["state"]["name"]
            self.ended[run] = datetime.now(UTC)
            return {}
        wanted = body["flow_runs"]
        since = wanted.get("end_time", {}).get("after_", datetime.min.replace(tzinfo=UTC).isoformat())
        found = [
            run
            for run, state in self.state.items()
            if state in wanted["state"]["type"]["any_"]
            and self.ended.get(run, datetime.now(UTC)) >= datetime.fromisoformat(since)
        ]
        return [{"id": run} for run in found[body["offset"] : body["offset"] + body["limit"]]]

    def get(self, path: str) -> Any:
        count = self.restarts.get(path.partition("=")[2], 0)
        died, again = {"type": "CRASHED", "name": "Crashed"}, {"type": "SCHEDULED", "name": "Restarting"}
        return [{**state, "timestamp": f"{index:03}"} for index, state in enumerate([died, again] * count)]


@pytest.fixture
def server() -> Server:
    return Server()


def test_each_run_gets_the_state_that_is_its_due(server: Server) -> None:
    server.state = {
        "ran": "RUNNING",
        "stopped": "CANCELLING",
        "lately": "CRASHED",
        "long-ago": "CRASHED",
        "endless": "CRASHED",
        "done": "COMPLETED",
    }
    server.ended = {"lately": datetime.now(UTC), "long-ago": datetime.now(UTC) - timedelta(days=2)}
    server.restarts = {"endless": MOST_RESTARTS, "lately": MOST_RESTARTS - 1}
    assert launch.restart_dead_runs(server, "resprout") == ["ran"]
    again = {"ran": "Restarting", "lately": "Restarting"}
    assert server.told == {**again, "stopped": "Cancelled", "endless": "Failed"}


def test_a_stack_that_stops_leaves_a_cancelled_run_cancelled(server: Server) -> None:
    server.state = {"ran": "RUNNING", "stopped": "CANCELLING"}
    launch.schedule_resume(server, ["ran", "stopped"])
    assert server.told == {"ran": "Resuming", "stopped": "Cancelled"}


def test_more_runs_than_the_server_gives_at_once_are_all_seen(server: Server) -> None:
    server.state = {f"run-{index}": "PENDING" for index in range(2 * launch.PAGE + 7)}
    assert len(launch.restart_dead_runs(server, "resprout")) == 2 * launch.PAGE + 7
    assert set(server.told.values()) == {"Restarting"}
