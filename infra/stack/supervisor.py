"""The supervisor of the stack (supervisord): its config, its start, and calls over its Unix socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from resprout.configs.errors import StageFailed
from resprout.infra.logs import last_line
from resprout.infra.prefect.auth import auth_string
from resprout.infra.stack.launch import (
    SERVICE,
    STACK,
    WORKER,
    Api,
    run_ids,
    schedule_resume,
    service_processes,
    stack_mark,
    terminate,
)
from resprout.infra.stack.services import Service

LONGEST_SOCKET_PATH = 100
"""A Unix socket's address holds little more."""
GIVEN_UP = ("STOPPED", "EXITED", "FATAL")
START_SECONDS = 20.0
STOP_SECONDS = 30
NotRunning = (OSError, http.client.HTTPException)
"""Raised by a call when no supervisor listens."""

HEAD = """[supervisord]
logfile=%(here)s/logs/supervisor.log
logfile_maxbytes=5MB
logfile_backups=3
pidfile=%(here)s/supervisord.pid
identifier={identity}
directory=%(here)s
umask=077

[unix_http_server]
file={socket}
chmod=0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = """
[program:{name}]
command={command}
environment=PART_DIGEST="{digest}"
priority={priority}
autorestart=true
startsecs=3
startretries=1000
stopasgroup=true
killasgroup=true
stopwaitsecs={patience}
redirect_stderr=true
stdout_logfile=%(here)s/logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=5
"""


@dataclass(frozen=True)
class ProcessState:
    """State of one service."""

    state: str
    pid: int
    began: float
    """Seconds since the epoch."""
    ended: float
    """When it last ended, 0.0 if never."""


class Supervisor:
    """The supervisor of the stack below `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "stack"
        self.logs = self.folder / "logs"
        self.config = self.folder / "supervisord.conf"
        self.socket = self._socket()

    @property
    def _api(self) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, serverurl=f"unix://{self.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def identity(self) -> str | None:
        """Return the identity that the running supervisor was started with; None where none runs."""
        try:
            return str(self._api.getIdentification())
        except NotRunning:
            return None

    def states(self) -> dict[str, ProcessState]:
        """Return the state of each service; empty where no supervisor runs."""
        try:
            found = self._api.getAllProcessInfo()
        except NotRunning:
            return {}
        return {
            one["name"]: ProcessState(one["statename"], one["pid"], float(one["start"]), float(one["stop"]))
            for one in found
        }

    def write(self, services: list[Service], identity: str) -> None:
        """Write the config, and a file for each service; nothing secret is in them."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        text = HEAD.format(identity=identity, socket=str(self.socket).replace("%", "%%"))
        for number, service in enumerate(services):
            self._put(self.folder / f"{service.name}.json", service.text())
            start = f"{shlex.quote(sys.executable)} -m resprout.infra.stack.launch".replace("%", "%%")
            text += PROGRAM.format(
                name=service.name,
                command=f'{start} "%(here)s/{service.name}.json"',
                digest=hashlib.sha256(service.text().encode()).hexdigest(),
                priority=100 + number,
                patience=STOP_SECONDS,
            )
        self._put(self.config, text)

    def start(self, secrets: dict[str, str]) -> None:
        """Start it in the background with all services; secrets are in its environment only."""
        with suppress(FileNotFoundError):
            self.socket.unlink()
        start_log = self.logs / "start.log"
        # Settings of resprout are handed on by the services' own files.
        own = ("RESPROUT_", STACK, SERVICE)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        with start_log.open("wb") as sink:
            done = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)],
                env={**inherited, **secrets, STACK: stack_mark(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                umask=0o077,
                check=False,
            )
        until = time.monotonic() + START_SECONDS
        while self.identity() is None:
            if done.returncode or time.monotonic() > until:
                why = last_line(start_log) or last_line(self.logs / "supervisor.log")
                raise StageFailed(f"the supervisor did not start: {why}")
            time.sleep(0.05)

    def reload(self) -> None:
        """Apply the config as written: start what is new, changed or stopped, stop what is not in it."""
        ((added, changed, removed),) = self._api.reloadConfig()
        for name in (*changed, *removed):
            self.stop(name)
            self._api.removeProcessGroup(name)
        for name in (*changed, *added):
            self._api.addProcessGroup(name)
        for name, state in self.states().items():
            if state.state in GIVEN_UP:
                self._api.startProcess(name, False)

    def stop(self, name: str) -> None:
        """Stop a service and wait for it."""
        with suppress(xmlrpc.client.Fault):
            if name != WORKER:
                self._api.stopProcess(name)
                return
            with self._runs_ended():
                self._api.stopProcess(name, False)
            until = time.monotonic() + STOP_SECONDS
            while self.states()[name].state == "STOPPING" and time.monotonic() < until:
                time.sleep(0.1)

    @contextmanager
    def _runs_ended(self) -> Iterator[None]:
        """A block in which the worker stands still and its runs have ended, each in a state to go on from.

        A worker that is asked to stop kills its runs at once; one that goes on would take up the next ones.
        """
        pid = self.states()[WORKER].pid
        runs = [run for run in service_processes(stack_mark(self.home), WORKER) if run.pid != pid]
        with suppress(psutil.Error):
            psutil.Process(pid).suspend()
        ids = run_ids(runs)
        worker = json.loads((self.folder / f"{WORKER}.json").read_text())
        terminate(runs, STOP_SECONDS)
        try:
            with suppress(OSError):
                environment = worker["environment"]
                auth = auth_string(Path(environment["PREFECT_HOME"]))
                schedule_resume(Api(environment["PREFECT_API_URL"], auth), ids)
            yield
        finally:
            with suppress(psutil.Error):
                psutil.Process(pid).resume()

    def shut_down(self, names: list[str]) -> None:
        """Stop the services in this order, then the supervisor itself."""
        with suppress(*NotRunning):
            for name in names:
                self.stop(name)
            pid = int(self._api.getPID())
            self._api.shutdown()
            with suppress(psutil.Error):
                psutil.Process(pid).wait(timeout=START_SECONDS)

    def log(self, name: str) -> Path:
        """Return the log file of a service."""
        return self.logs / f"{name}.log"

    def _put(self, path: Path, text: str) -> None:
        if path.exists() and path.read_text() == text:
            return
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def _socket(self) -> Path:
        """Return a path in the stack's own folder; where that is too long, in a private temporary folder."""
        path = self.folder.resolve() / "supervisor.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        folder = Path(tempfile.gettempdir()) / f"resprout-{os.getuid()}-{stack_mark(self.home)}"
        folder.mkdir(mode=0o700, exist_ok=True)
        held = folder.lstat()
        if held.st_uid != os.getuid() or held.st_mode & 0o077:
            raise StageFailed(f"{folder} belongs to another user or is open to others; remove it")
        return folder / "supervisor.sock"
