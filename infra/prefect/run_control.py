"""List the flow runs of a Prefect server; find, follow, cancel and retry one."""

from __future__ import annotations

import difflib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from resprout.configs.errors import BadInput, GateNotPassed, StageFailed
from resprout.configs.infrastructure import InfraConfig, without_credentials
from resprout.infra.prefect.auth import CLIENT, auth_string, own_server
from resprout.infra.prefect.flow_runs import FLOW, GATE_NOT_PASSED, SWEEP
from resprout.infra.prefect.home_server import FOLDER, home_server, is_running
from resprout.infra.prefect.server import api_of, named_api, server
from resprout.infra.process_identity import start_ticks

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log, State

RECENT = 200
"""Newest runs among which a name or the beginning of an id is looked for."""
SHORTEST = 4
"""Characters of an id that name a run."""
POLL_SECONDS = 1.0
RESTART_SECONDS = 90.0
"""In which the server begins a crashed run again, if it does (`automations.SETTLED_SECONDS`, and a look)."""
LONG = 300
"""Characters of a log line that are shown."""
PREFECT, ENGINE = "prefect.", ("prefect.flow_runs", "prefect.task_runs")
"""How the names of Prefect's own loggers begin; those of its engine, not of its worker."""
STOP_SECONDS = 30.0
"""How long a process of a command line may take to stop."""
WORKER_SECONDS = 90.0
"""How long a worker, or the stack's server where no process answers, may take to end a cancelled run."""
PROCESS_SAYS, SPEAKS_SECONDS = "Flow run was cancelled.", 30.0
"""State message that a cancelled run's own process sets; seconds within which the worker sets its own."""
PAGE = 200
"""Log lines that the server gives at once."""
CANCELLED = 130
BY_COMMAND = "cancelled by `resprout cancel`"
FAILING = ("FAILED", "CRASHED")
DATABASE = "prefect.db"
"""Database of a home's own server."""
OWN_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
"""Set where the stack's server has another database."""


@dataclass(frozen=True)
class RunsServer:
    """A server that knows runs: its client, and what it is, with its address."""

    client: SyncPrefectClient
    title: str


@contextmanager
def runs_servers(infra: InfraConfig, home: Path) -> Iterator[list[RunsServer]]:
    """The servers that know the runs: the one that is named, else those of the home.

    These are its stack, and the server of its command lines, where that has a database of its own or the
    stack is down; it is started for the moment where no run keeps it alive. Called after `prepare` and before
    Prefect is imported.

    Raises:
        BadInput: no server is named, the home's stack is down, and nothing has run in the home.
    """
    url = api_of(infra)
    if named_api(infra):
        with server(infra) as client:
            yield [RunsServer(client, f"the Prefect server at {without_credentials(url)}")]
        return
    folder, servers = Path(os.environ["PREFECT_HOME"]), home / "prefect"
    stack = own_server(url, servers)
    shared = stack is not None and OWN_DATABASE not in stack and folder.resolve() == servers.resolve()
    found: list[RunsServer] = []
    with ExitStack() as entered:
        if stack is not None:
            client = entered.enter_context(server(infra, (url, auth_string(servers))))
            found.append(RunsServer(client, f"the stack of {home} at {url}"))
        if not shared and (is_running(folder / FOLDER) or not found):
            if not (folder / DATABASE).is_file():
                raise BadInput(
                    f"no flow run is known: nothing has run in {home}, and its stack is not up at {url}; set "
                    "RESPROUT_HOME, or infra.prefect.api_url in a file for --config"
                )
            entered.enter_context(home_server(infra))
            own = os.environ["PREFECT_API_URL"]
            client = entered.enter_context(server(infra, (own, os.environ[CLIENT])))
            found.append(RunsServer(client, f"the server of command lines of {home} at {own}"))
        yield found


def listed(client: SyncPrefectClient, failed: bool = False, limit: int = RECENT) -> list[FlowRun]:
    """Runs of resprout's flows, newest first; runs that a schedule makes beforehand are left out."""
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    kinds = FlowRunFilterStateType(any_=[StateType(one) for one in FAILING])
    now: Any = datetime.now(UTC) + timedelta(seconds=1)
    due = FlowRunFilterExpectedStartTime(before_=now)
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW, SWEEP])),
        flow_run_filter=FlowRunFilter(
            expected_start_time=due, state=FlowRunFilterState(type=kinds) if failed else None
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=limit,
    )


def origins(client: SyncPrefectClient, runs: Sequence[FlowRun]) -> dict[UUID, str]:
    """By the id of each run its deployment, or the config that it was started with at a command line."""
    names: dict[UUID, str] = {}
    for deployment in {run.deployment_id for run in runs if run.deployment_id}:
        # A deployment may be removed before its runs.
        with suppress(Exception):
            names[deployment] = client.read_deployment(deployment).name
    return {
        run.id: names.get(run.deployment_id, "removed deployment")
        if run.deployment_id
        else str(run.parameters.get("config", ""))
        for run in runs
    }


def find_among(servers: Sequence[RunsServer], reference: str) -> tuple[SyncPrefectClient, FlowRun]:
    """The run with this name or id at the first server that knows it; BadInput with near names."""
    for one in servers[:-1]:
        with suppress(BadInput):
            return one.client, find(one.client, reference)
    return servers[-1].client, find(servers[-1].client, reference)


def find(client: SyncPrefectClient, reference: str) -> FlowRun:
    """The run with this name or id, or whose id begins so; BadInput with near names."""
    from prefect.exceptions import ObjectNotFound

    with suppress(ValueError, ObjectNotFound):
        return client.read_flow_run(UUID(reference))
    recent = listed(client)
    wanted = reference.lower()
    found = [run for run in recent if run.name == reference]
    if not found and len(wanted) >= SHORTEST and re.fullmatch(r"[0-9a-f-]+", wanted):
        found = [run for run in recent if str(run.id).startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(run.id) for run in found)
        raise BadInput(f"{len(found)} flow runs are called '{reference}'; give the id of one: {ids}")
    names = list(dict.fromkeys(run.name or "" for run in recent))
    near = difflib.get_close_matches(reference, names, n=3, cutoff=0.5) or names[:3]
    known = f"; near names: {', '.join(map(repr, near))}" if near else "; none has run yet"
    raise BadInput(f"no flow run is called '{reference}', nor does an id begin so{known} (`resprout runs`)")


def page_of(run: FlowRun) -> str | None:
    """Address of the run's page; None where the server has no pages, as the home's own."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=run.id)


def follow(client: SyncPrefectClient, run: FlowRun, until_end: bool = True) -> Iterator[str]:
    """Yield a run's log lines and states as they come until it ends; without `until_end` those of now.

    A run that crashed has ended where the server does not begin it again for a while.
    """
    logged, states = 0, set[UUID]()
    while True:
        now = client.read_flow_run(run.id)
        over = not until_end or _over(now)
        if over and until_end:
            # The last lines are on their way for a moment.
            time.sleep(POLL_SECONDS)
        new = [state for state in client.read_flow_run_states(run.id) if state.id not in states]
        states |= {state.id for state in new}
        lines = [(one.timestamp, _state_line(one)) for one in new]
        while page := _logs(client, run.id, logged):
            logged += len(page)
            lines += [(one.timestamp, _log_line(one)) for one in page if _of_interest(one)]
        for moment, text in sorted(lines, key=lambda one: one[0]):
            yield f"{moment.astimezone():%H:%M:%S} {text}"
        if over:
            return
        time.sleep(POLL_SECONDS)


def _logs(client: SyncPrefectClient, run: UUID, offset: int) -> list[Log]:
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import LogSort

    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    return client.read_logs(wanted, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)


def _of_interest(log: Log) -> bool:
    """Whether a line says more than the states do: Prefect's engine repeats these, with tracebacks."""
    return log.name not in ENGINE and (log.level >= logging.WARNING or not log.name.startswith(PREFECT))


def _state_line(state: State[Any]) -> str:
    return f"state {state.name}: {_line(state.message)}" if state.message else f"state {state.name}"


def _log_line(log: Log) -> str:
    level = f"{logging.getLevelName(log.level)} " if log.level >= logging.WARNING else ""
    return f"{level}{_line(log.message)}"


def _line(text: str) -> str:
    """Its first line, and of a traceback the last one too, each shortened."""
    lines = [one.strip() for one in text.strip().splitlines()] or [""]
    shown = lines if len(lines) == 1 else (lines[0], "...", lines[-1])
    return " ".join(one if len(one) <= LONG else f"{one[:LONG]}..." for one in shown)


def _over(run: FlowRun) -> bool:
    state = run.state
    if state is None or not state.is_final():
        return False
    restarts = state.is_crashed() and run.deployment_id is not None
    return not restarts or datetime.now(UTC) - state.timestamp > timedelta(seconds=RESTART_SECONDS)


def exit_code(state: State[Any] | None) -> int:
    """Exit code of a run that ended so, as of `resprout run`."""
    if state is None or state.is_failed() or state.is_crashed():
        gate = state is not None and state.name == GATE_NOT_PASSED
        return GateNotPassed.exit_code if gate else StageFailed.exit_code
    return CANCELLED if state.is_cancelled() else 0


def cancel(client: SyncPrefectClient, run: FlowRun) -> str:
    """Stop a run, and return how in a sentence; its finished stages are kept.

    A deployed run is stopped by its worker. One of this machine's command line gets SIGTERM, which also ends
    the background command of a script, started with SIGINT ignored.
    """
    if run.state is not None and run.state.is_final():
        raise BadInput(f"the flow run '{run.name}' has ended already ({run.state.name}); nothing was changed")
    if run.deployment_id is not None:
        return _stop_deployed(client, run)
    if run.parent_task_run_id is not None:
        raise BadInput(f"'{run.name}' is a variant of a sweep; cancel the sweep, all of whose variants stop")
    host, *_ = _place(run)
    if host != socket.gethostname():
        where = f" on {host}" if host else ""
        raise BadInput(
            f"'{run.name}' was started at a command line{where}; press Ctrl-C there, or send "
            "its process SIGTERM"
        )
    process = _process(run)
    if process is None:
        _set(client, run, "CANCELLED", "its process is gone", force=True)
        return f"the process of '{run.name}' is gone, so it is marked as cancelled; finished stages are kept"
    process.terminate()
    end = time.monotonic() + STOP_SECONDS
    while _is_alive(process) and time.monotonic() < end:
        time.sleep(0.2)
    if _is_alive(process):
        return f"process {process.pid} of '{run.name}' was told to stop, and still works; look again later"
    # Prefect calls any run that a signal ended crashed.
    _set(client, run, "CANCELLED", BY_COMMAND, force=True)
    return f"'{run.name}' has stopped; finished stages are kept"


def _stop_deployed(client: SyncPrefectClient, run: FlowRun) -> str:
    _set(client, run, "CANCELLING", BY_COMMAND)
    end = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < end:
        state = client.read_flow_run(run.id).state
        if state is not None and state.is_final():
            if state.is_cancelled():
                return f"'{run.name}' has stopped; finished stages are kept"
            return f"'{run.name}' ended before its worker could stop it ({state.name})"
        time.sleep(POLL_SECONDS / 2)
    return (
        f"'{run.name}' is to stop, but no worker has stopped it within {WORKER_SECONDS:.0f} s; see whether "
        "its worker runs, and cancel it again"
    )


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def retry(client: SyncPrefectClient, run: FlowRun) -> str:
    """Schedule a deployed run again, the same flow run, and return that in a sentence.

    Raises:
        BadInput: it has not ended, has ended well, or was started at a command line.
    """
    run = _settled(client, run)
    state = run.state
    if state is None or not state.is_final():
        name = state.name if state is not None else "unknown"
        raise BadInput(f"the flow run '{run.name}' has not ended ({name}); cancel it first, or wait")
    if state.is_completed():
        raise BadInput(
            f"the flow run '{run.name}' ended well ({state.name}); start another by "
            "`resprout deploy CONFIG --run`"
        )
    if run.deployment_id is None:
        given = run.parameters
        words = " ".join([str(given.get("config", "CONFIG")), *(given.get("overrides") or ())])
        raise BadInput(
            f"'{run.name}' was started at a command line; run the same command again (resprout run {words}): "
            "finished stages are found in the cache"
        )
    _set(client, run, "SCHEDULED", "retried by `resprout retry`", name="AwaitingRetry", force=True)
    return f"'{run.name}' is scheduled again; finished stages are found in the cache"


def _settled(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run after its worker has set the state Cancelled, where so far only its own process has.

    The worker forces that state when the process has exited. A run that was rescheduled before then would be
    cancelled again.
    """
    while (state := run.state) is not None and state.is_cancelled() and state.message == PROCESS_SAYS:
        if (datetime.now(UTC) - state.timestamp).total_seconds() > SPEAKS_SECONDS:
            break
        time.sleep(0.5)
        run = client.read_flow_run(run.id)
    return run


def _set(
    client: SyncPrefectClient,
    run: FlowRun,
    kind: str,
    message: str,
    name: str | None = None,
    force: bool = False,
) -> None:
    from prefect.client.schemas.objects import State, StateType
    from prefect.client.schemas.responses import SetStateStatus

    wanted: State[Any] = State(type=StateType(kind), name=name, message=message)
    done = client.set_flow_run_state(run.id, wanted, force=force)
    if done.status == SetStateStatus.ABORT:
        why = getattr(done.details, "reason", None)
        raise BadInput(f"the Prefect server refuses to change the flow run '{run.name}': {why}")


def note_process(client: SyncPrefectClient, run: UUID | str) -> None:
    """Note on the server which process runs a flow of a command line, so that `cancel` finds it."""
    parts = (socket.gethostname(), os.getpid(), start_ticks(os.getpid()))
    noted = ":".join(str(part) for part in parts if part is not None)
    client.update_flow_run(UUID(str(run)), infrastructure_pid=noted)


def _place(run: FlowRun) -> tuple[str, int, int | None]:
    """Host, process id and start of a run of a command line; empty where it did not note them."""
    host, *numbers = (run.infrastructure_pid or "").split(":")
    if not numbers or not all(number.isdigit() for number in numbers):
        return "", 0, None
    return host, int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None


def _process(run: FlowRun) -> psutil.Process | None:
    """The live process of a run of this machine's command line; an id that was given out again is none."""
    _, pid, ticks = _place(run)
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if ticks is not None:
            return process if start_ticks(pid) == ticks else None
        began = run.start_time or run.expected_start_time
        if began is not None and process.create_time() <= began.timestamp() + 1:
            return process
    return None
