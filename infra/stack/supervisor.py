"""The supervisor of the stack (supervisord): its config, its start, and what it says over a Unix socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
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
from resprout.infra.stack.leftovers import STACK, end, inherited, mark, of_part
from resprout.infra.stack.part import WORKER, Part
from resprout.infra.stack.runs import resume_later, run_ids

ERROR = re.compile(r"^\S*(Error|Exception)\b|\b(error|ERROR):")
LONGEST_SOCKET_PATH = 100
"""A Unix socket's address holds little more."""
GIVEN_UP = ("STOPPED", "EXITED", "FATAL")
START_SECONDS = 20.0
STOP_SECONDS = 30
Gone = (OSError, http.client.HTTPException)
"""What a call raises when no supervisor listens."""

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
class Told:
    """What the supervisor says of one part."""

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
        """The identity that the running supervisor was started with; None where none runs."""
        try:
            return str(self._api.getIdentification())
        except Gone:
            return None

    def told(self) -> dict[str, Told]:
        """State of each part; empty where no supervisor runs."""
        try:
            found = self._api.getAllProcessInfo()
        except Gone:
            return {}
        return {
            one["name"]: Told(one["statename"], one["pid"], float(one["start"]), float(one["stop"]))
            for one in found
        }

    def write(self, parts: list[Part], identity: str) -> None:
        """Write the config, and each part's own file; nothing secret is in them."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        text = HEAD.format(identity=identity, socket=str(self.socket).replace("%", "%%"))
        for number, part in enumerate(parts):
            self._put(self.folder / f"{part.name}.json", part.text())
            start = f"{shlex.quote(sys.executable)} -m resprout.infra.stack.part".replace("%", "%%")
            text += PROGRAM.format(
                name=part.name,
                command=f'{start} "%(here)s/{part.name}.json"',
                digest=hashlib.sha256(part.text().encode()).hexdigest(),
                priority=100 + number,
                patience=STOP_SECONDS,
            )
        self._put(self.config, text)

    def start(self, secrets: dict[str, str]) -> None:
        """Start it in the background with all parts; secrets are in its environment only."""
        with suppress(FileNotFoundError):
            self.socket.unlink()
        said = self.logs / "start.log"
        with said.open("wb") as sink:
            done = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)],
                env={**inherited(), **secrets, STACK: mark(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                umask=0o077,
                check=False,
            )
        end = time.monotonic() + START_SECONDS
        while self.identity() is None:
            if done.returncode or time.monotonic() > end:
                why = last_line(said) or last_line(self.logs / "supervisor.log")
                raise StageFailed(f"the supervisor did not start: {why}")
            time.sleep(0.05)

    def reload(self) -> None:
        """Take up the config as written: start what is new, changed or stopped, stop what is not in it."""
        ((added, changed, removed),) = self._api.reloadConfig()
        for name in (*changed, *removed):
            self.stop(name)
            self._api.removeProcessGroup(name)
        for name in (*changed, *added):
            self._api.addProcessGroup(name)
        for name, told in self.told().items():
            if told.state in GIVEN_UP:
                self._api.startProcess(name, False)

    def stop(self, name: str) -> None:
        """Stop a part and wait for it."""
        with suppress(xmlrpc.client.Fault):
            if name != WORKER:
                self._api.stopProcess(name)
                return
            with self._runs_ended():
                self._api.stopProcess(name, False)
            until = time.monotonic() + STOP_SECONDS
            while self.told()[name].state == "STOPPING" and time.monotonic() < until:
                time.sleep(0.1)

    @contextmanager
    def _runs_ended(self) -> Iterator[None]:
        """A block in which the worker stands still and its runs have ended, each in a state to go on from.

        A worker that is asked to stop kills its runs at once; one that goes on would take up the next ones.
        """
        pid = self.told()[WORKER].pid
        runs = [run for run in of_part(mark(self.home), WORKER) if run.pid != pid]
        with suppress(psutil.Error):
            psutil.Process(pid).suspend()
        ids = run_ids(runs)
        end(runs, STOP_SECONDS)
        try:
            with suppress(OSError):
                resume_later(self._worker_api(), ids)
            yield
        finally:
            with suppress(psutil.Error):
                psutil.Process(pid).resume()

    def _worker_api(self) -> str:
        """The Prefect server that the worker was started with."""
        worker = json.loads((self.folder / f"{WORKER}.json").read_text())
        return str(worker["environment"]["PREFECT_API_URL"])

    def shut_down(self, names: list[str]) -> None:
        """Stop the parts in this order, then the supervisor itself."""
        with suppress(*Gone):
            for name in names:
                self.stop(name)
            pid = int(self._api.getPID())
            self._api.shutdown()
            with suppress(psutil.Error):
                psutil.Process(pid).wait(timeout=START_SECONDS)

    def log(self, name: str) -> Path:
        """Log file of a part."""
        return self.logs / f"{name}.log"

    def _put(self, path: Path, text: str) -> None:
        if path.exists() and path.read_text() == text:
            return
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def _socket(self) -> Path:
        """In the stack's own folder; where that has too long a path, in a private temporary folder."""
        path = self.folder.resolve() / "supervisor.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        folder = Path(tempfile.gettempdir()) / f"resprout-{os.getuid()}-{mark(self.home)}"
        folder.mkdir(mode=0o700, exist_ok=True)
        held = folder.lstat()
        if held.st_uid != os.getuid() or held.st_mode & 0o077:
            raise StageFailed(f"{folder} belongs to another user or is open to others; remove it")
        return folder / "supervisor.sock"


def last_line(path: Path) -> str:
    """The last line of a log that names an error, else any, without credentials; empty for none."""
    from resprout.configs.infrastructure import without_credentials

    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if any(letter.isalnum() for letter in line)]
    errors = [line for line in said[-40:] if ERROR.search(line)]
    return without_credentials((errors or said)[-1])[:300] if said else ""
