"""Start a service of the stack, end its leftover processes, and reschedule runs that died.

Run as a module with the path of a service's JSON file, it ends what an earlier life of the service has left
behind (a server's child that outlived a kill -9 holds the port), waits for the servers that it needs, and
becomes the service's command. Secrets come through the environment only, and a service keeps only its own.

A worker that was killed together with its runs, or a whole stack that was, leaves runs that the server takes
for running. The next worker marks them as Crashed and schedules them again before it takes up work; those
that a person was cancelling are cancelled.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from resprout.infra.network import get, is_healthy, post
from resprout.infra.prefect.auth import CLIENT
from resprout.infra.prefect.flow_runs import FLOW, MOST_RESTARTS, NEVER_BEGINS, RESTARTING, in_a_row

STACK = "_RESPROUT_STACK"
SERVICE = "_RESPROUT_PART"
WORKER = "worker"
GRACE_SECONDS = 10.0
RUN_ID = "PREFECT__FLOW_RUN_ID"
UNFINISHED = ("RUNNING", "PENDING")
CANCELLED = {"type": "CANCELLED", "name": "Cancelled", "message": "its process ended while it was cancelled"}
CRASHED = {"type": "CRASHED", "name": "Crashed", "message": "its process was gone when the worker started"}
AGAIN = {"type": "SCHEDULED", "name": RESTARTING, "message": "its process died; a new worker goes on"}
"""As the server's automation does; the run counts these (flows/flow_run.py)."""
GIVEN_UP = {"type": "FAILED", "name": "Failed", "message": NEVER_BEGINS}
RESUMING = {"type": "SCHEDULED", "name": "Resuming", "message": "the stack was stopped; the next one goes on"}
RECENT = timedelta(days=1)
"""A run that crashed before is left to people."""
PAGE = 200
"""The most that the server gives at once."""


@dataclass(frozen=True)
class Api:
    """The stack's Prefect server."""

    url: str
    auth: str

    def get(self, path: str) -> Any:
        """Return the JSON that it answers; OSError where it does not."""
        return get(f"{self.url}/{path}", self.auth)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that it answers to JSON; OSError where it does not."""
        return post(f"{self.url}/{path}", body, self.auth)


def stack_mark(home: Path) -> str:
    """Return the mark of the processes of the stack with this data folder."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]


def stack_processes(mark: str) -> Iterator[tuple[psutil.Process, str]]:
    """Yield live processes of this user with the mark, each with its service ('' for the supervisor)."""
    me = psutil.Process()
    own = {me.pid, *(parent.pid for parent in me.parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(STACK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process, environment.get(SERVICE, "")


def service_processes(mark: str, service: str) -> list[psutil.Process]:
    """Return the live processes of one service."""
    return [process for process, found in stack_processes(mark) if found == service]


def terminate(processes: list[psutil.Process], seconds: float = GRACE_SECONDS) -> None:
    """Ask the processes to end and kill those that do not; psutil notices when an id was given out again."""
    for request in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                request(process)
        until = time.monotonic() + seconds
        while (processes := [one for one in processes if _is_alive(one)]) and time.monotonic() < until:
            time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def main(path: Path) -> None:
    """Become the command of the service that `path` describes."""
    service = json.loads(path.read_text())
    if service["name"] != WORKER:
        # Runs that outlived a killed worker go on by themselves; the new worker takes up the next ones.
        terminate(service_processes(os.environ[STACK], service["name"]))
    for url in service["after"]:
        while not is_healthy(url):
            time.sleep(0.2)
    if service["pool"]:
        api = Api(service["environment"]["PREFECT_API_URL"], os.environ[CLIENT])
        dead = restart_dead_runs(api, service["pool"])
        sys.stdout.write(
            f"runs whose process is gone, marked as Crashed: {', '.join(dead)}\n" if dead else ""
        )
        sys.stdout.flush()
    environment = without_foreign_secrets(os.environ, service["without"], service["keeps"])
    environment.update(service["environment"])
    environment[SERVICE] = service["name"]
    os.execvpe(service["command"][0], service["command"], environment)


def without_foreign_secrets(
    environment: Mapping[str, str], without: Iterable[str], keeps: Iterable[str]
) -> dict[str, str]:
    """Return an environment without the secrets of other services, under whatever name the user gave them.

    A run whose config says ${VARIABLE} finds the worker's own secrets under the user's names too.
    """
    secret = {_bare(environment.get(name, "")) for name in without}
    secret -= {_bare(environment.get(name, "")) for name in keeps} | {""}
    kept = set(keeps)
    return {
        name: value
        for name, value in environment.items()
        if name in kept or (name not in without and _bare(value) not in secret)
    }


def _bare(secret: str) -> str:
    """A database's address is handed on with the name of a driver before it."""
    return secret.rpartition("://")[2]


def restart_dead_runs(api: Api, pool: str) -> list[str]:
    """Mark the dead runs of `pool` at the server `api` as Crashed and schedule them again; return their ids.

    Runs that crashed recently are scheduled too: the server may have ended before its automation ran.
    """
    alive = run_ids(psutil.process_iter())
    own = {"work_pools": {"name": {"any_": [pool]}}, "flows": {"name": {"any_": [FLOW]}}}
    for run in _ids(api, own, "CANCELLING"):
        if run not in alive:
            _set(api, run, CANCELLED)
    dead = [run for run in _ids(api, own, *UNFINISHED) if run not in alive]
    for run in dead:
        _set(api, run, CRASHED)
    since = {"end_time": {"after_": (datetime.now(UTC) - RECENT).isoformat()}}
    for run in _ids(api, {**own, "flow_runs": since}, "CRASHED"):
        if run not in alive:
            _set(api, run, GIVEN_UP if _restarts(api, run) >= MOST_RESTARTS else AGAIN)
    return dead


def schedule_resume(api: Api, runs: list[str]) -> None:
    """Schedule the runs that did not finish: a person stopped them, so it does not count as a restart."""
    if not runs:
        return
    these = {"flow_runs": {"id": {"any_": runs}}}
    for run in _ids(api, these, "CANCELLING"):
        _set(api, run, CANCELLED)
    for run in _ids(api, these, *UNFINISHED, "CRASHED"):
        _set(api, run, RESUMING)


def run_ids(processes: Iterable[psutil.Process]) -> list[str]:
    """Return the ids of the runs that live among the processes."""
    found = []
    for process in processes:
        with suppress(psutil.Error, OSError):
            if (run := process.environ().get(RUN_ID)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(run)
    return sorted(set(found))


def _ids(api: Api, query: dict[str, Any], *states: str) -> list[str]:
    runs = {**query.get("flow_runs", {}), "state": {"type": {"any_": states}}}
    found: list[str] = []
    while True:
        page = {"limit": PAGE, "offset": len(found), "sort": "ID_DESC"}
        answer = api.post("flow_runs/filter", {**query, "flow_runs": runs, **page})
        found += [run["id"] for run in answer]
        if len(answer) < PAGE:
            return found


def _restarts(api: Api, run: str) -> int:
    states = api.get(f"flow_run_states/?flow_run_id={run}")
    return in_a_row((one["type"], one["name"]) for one in sorted(states, key=lambda one: one["timestamp"]))


def _set(api: Api, run: str, state: dict[str, str]) -> None:
    api.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
