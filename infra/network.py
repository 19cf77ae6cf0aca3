"""Servers on this machine: requests to them without their libraries, whose imports take seconds; ports."""

from __future__ import annotations

import base64
import errno
import json
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from resprout.configs.errors import BadInput

BUSY = 503
HEALTH_SECONDS = 2.0
# Prefect waits for its database for ten seconds before it says that it is busy.
ANSWER_SECONDS = 20.0
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, None)
# A proxy of the machine knows nothing of its loopback interface.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_healthy(url: str) -> bool:
    """Whether a server answers 200."""
    try:
        with _OPENER.open(url, timeout=HEALTH_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def get(url: str, auth: str | None = None) -> Any:
    """Return the JSON that a server answers; OSError where it does not. `auth` is user:password."""
    return _answer(urllib.request.Request(url, headers=_headers(auth)))


def post(url: str, body: dict[str, Any], auth: str | None = None) -> Any:
    """Return the JSON that a server answers to JSON; OSError where it does not. `auth` is user:password."""
    headers = {"Content-Type": "application/json", **_headers(auth)}
    return _answer(urllib.request.Request(url, json.dumps(body).encode(), headers))


def _headers(auth: str | None) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"} if auth else {}


def _answer(ask: urllib.request.Request) -> Any:
    for pause in PAUSES_SECONDS:
        try:
            with _OPENER.open(ask, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # What Prefect says while something else writes to its SQLite file.
            if error.code != BUSY or pause is None:
                raise
            time.sleep(pause)
    return None


BACKLOG = 2048


@dataclass(frozen=True)
class Holder:
    """A process that listens; `pid` is None where it is another user's and cannot be seen."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid is not None else self.name


def port_holder(port: int) -> Holder | None:
    """The process that listens on a TCP port of this machine; None where the port is free."""
    for one in psutil.net_connections(kind="tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
            if one.pid is None:
                return Holder(None, "a process of another user")
            with suppress(psutil.Error):
                return Holder(one.pid, psutil.Process(one.pid).name())
            return Holder(one.pid, "a process")
    return None


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket that listens; BadInput that names `setting` and who holds the port where it is taken."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            holder = port_holder(port) or "another process"
            raise BadInput(
                f"port {port} is in use by {holder}; stop it, or set {setting} to another port"
            ) from None
        raise BadInput(f"{host}:{port} cannot be listened on ({error.strerror}); correct {setting}") from None
    return found
