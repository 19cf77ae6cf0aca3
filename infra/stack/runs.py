"""Runs whose process ends with the stack, or is gone: how they are marked, so that they go on.

A worker that was killed together with its runs, or a whole stack that was, leaves runs that the server takes
for running. The next worker marks them as Crashed and schedules them again before it takes up work.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psutil

from resprout.infra.stack.ask import post

FLOW = "compress"
RUN_ID = "PREFECT__FLOW_RUN_ID"
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")
CRASHED = {"type": "CRASHED", "name": "Crashed", "message": "its process was gone when the worker started"}
RESTARTING = {"type": "SCHEDULED", "name": "Restarting", "message": "its process died; a new worker goes on"}
"""As the server's automation does; the run counts these (flows/restarts.py)."""
RESUMING = {"type": "SCHEDULED", "name": "Resuming", "message": "the stack was stopped; the next one goes on"}


def mark_dead(api: str, pool: str) -> list[str]:
    """Ids of the runs of `pool` that were marked as Crashed at the server `api` and scheduled again.

    Those that are Crashed already are scheduled too: the server may have ended before its automation came.
    """
    alive = run_ids(psutil.process_iter())
    own = {"work_pools": {"name": {"any_": [pool]}}, "flows": {"name": {"any_": [FLOW]}}}
    dead = [run for run in _ids(api, own, UNFINISHED) if run not in alive]
    for run in dead:
        _set(api, run, CRASHED)
    for run in _ids(api, own, ("CRASHED",)):
        if run not in alive:
            _set(api, run, RESTARTING)
    return dead


def resume_later(api: str, runs: list[str]) -> None:
    """Schedule those of the runs that did not finish: a person stopped them, so it counts as no restart."""
    for run in _ids(api, {"flow_runs": {"id": {"any_": runs}}}, (*UNFINISHED, "CRASHED")) if runs else ():
        _set(api, run, RESUMING)


def run_ids(processes: Iterable[psutil.Process]) -> list[str]:
    """Ids of the runs that live among the processes."""
    found = []
    for process in processes:
        with suppress(psutil.Error, OSError):
            if (run := process.environ().get(RUN_ID)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(run)
    return sorted(set(found))


def _ids(api: str, query: dict[str, Any], states: Iterable[str]) -> list[str]:
    runs = {**query.get("flow_runs", {}), "state": {"type": {"any_": list(states)}}}
    return [run["id"] for run in post(f"{api}/flow_runs/filter", {**query, "flow_runs": runs})]


def _set(api: str, run: str, state: dict[str, str]) -> None:
    post(f"{api}/flow_runs/{run}/set_state", {"state": state, "force": True})
