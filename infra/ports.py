"""Ports of this machine: who listens on one, and how to be the one who does."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass

import psutil

from resprout.configs.errors import BadInput

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
