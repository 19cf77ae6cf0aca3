"""Ports of this machine: who holds one, and a socket on one that is free."""

from __future__ import annotations

import errno
import socket

import psutil

from resprout.configs.errors import BadInput


def port_holder(port: int) -> str | None:
    """The process that listens on a TCP port, say "postgres (process 123)"; None where nobody is seen to.

    A process of another user may be visible only as "another user's process".
    """
    try:
        found = [
            one
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return None
    for one in found:
        try:
            if one.pid is not None:
                return f"{psutil.Process(one.pid).name()} (process {one.pid})"
        except psutil.Error:
            continue
    return "another user's process" if found else None


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket bound to the port; BadInput that names `setting` and who holds the port where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Taking the port, not only the name: a second process could bind it too before anyone listens.
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            holder = port_holder(port)
            raise BadInput(
                f"port {port} is in use{f' by {holder}' if holder else ''}; stop it, or give {setting} "
                "another port"
            ) from None
        raise BadInput(f"{host}:{port} cannot be listened on ({error.strerror}); correct {setting}") from None
    return bound
