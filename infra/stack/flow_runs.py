"""Flow runs whose process died or ends with the stack: they are marked so that they go on.

A worker that was killed together with its runs, or a whole stack that was, leaves runs that the server takes
for running. The next worker marks them as Crashed and schedules them again before it takes up work; those
that a person was cancelling are cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil

from resprout.infra.network import get, post
from resprout.infra.prefect.flow_runs import FLOW, MOST_RESTARTS, NEVER_BEGINS, RESTARTING, in_a_row

RUN_ID = "PREFECT__FLOW_RUN_ID"
UNFINISHED = ("RUNNING", "PENDING")
CANCELLED = {"type": "CANCELLED", "name": "Cancelled", "message": "its process ended while it was cancelled"}
CRASHED = {"type": "CRASHED", "name": "Crashed", "message": "its process was gone when the worker started"}
AGAIN = {"type": "SCHEDULED", "name": RESTARTING, "message": "its process died; a new worker goes on"}
"""As the server's automation does; the run counts these (flows/restarts.py)."""
GIVEN_UP = {"type": "FAILED", "name": "Failed", "message": NEVER_BEGINS}
RESUMING = {"type": "SCHEDULED", "name": "Resuming", "message": "the stack was stopped; the next one goes on"}
RECENT = timedelta(days=1)
"""A run that crashed before is left to people."""
PAGE = 200
"""The most that the server gives at once."""


def restart_dead_runs(api: str, pool: str) -> list[str]:
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


def schedule_resume(api: str, runs: list[str]) -> None:
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


def _ids(api: str, query: dict[str, Any], *states: str) -> list[str]:
    runs = {**query.get("flow_runs", {}), "state": {"type": {"any_": states}}}
    found: list[str] = []
    while True:
        page = {"limit": PAGE, "offset": len(found), "sort": "ID_DESC"}
        answer = post(f"{api}/flow_runs/filter", {**query, "flow_runs": runs, **page})
        found += [run["id"] for run in answer]
        if len(answer) < PAGE:
            return found


def _restarts(api: str, run: str) -> int:
    states = get(f"{api}/flow_run_states/?flow_run_id={run}")
    return in_a_row((one["type"], one["name"]) for one in sorted(states, key=lambda one: one["timestamp"]))


def _set(api: str, run: str, state: dict[str, str]) -> None:
    post(f"{api}/flow_runs/{run}/set_state", {"state": state, "force": True})
