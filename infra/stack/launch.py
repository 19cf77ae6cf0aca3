"""Processes of the stack: a mark in their environment, which children inherit, and how a service begins.

Run as a module with the path of a service's JSON file, it ends what an earlier life of the service has left
behind (a server's child that outlived a kill -9 holds the port), waits for the servers that it needs, and
becomes the service's command. A worker first restarts its dead runs. Secrets come through the environment
only, and a service keeps only its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from resprout.infra.network import is_healthy
from resprout.infra.stack.flow_runs import restart_dead_runs

STACK = "_RESPROUT_STACK"
SERVICE = "_RESPROUT_PART"
WORKER = "worker"
GRACE_SECONDS = 10.0


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
        dead = restart_dead_runs(service["environment"]["PREFECT_API_URL"], service["pool"])
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
