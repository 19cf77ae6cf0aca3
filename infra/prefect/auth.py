"""The auth string that the Prefect servers of a home ask for, and which server is the home's.

Whoever reaches a Prefect server without one lets its worker run code: any page in a browser of the same
machine does. The string is made once, is in a file that its user alone can read, and reaches processes in
their environment.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from resprout.configs.errors import BadInput
from resprout.infra.network import port_holder
from resprout.infra.store.filesystem import disk_errors

FILE = "auth"
"""File below PREFECT_HOME."""
CLIENT = "PREFECT_API_AUTH_STRING"
SERVER = "PREFECT_SERVER_API_AUTH_STRING"
ELSEWHERE = "set RESPROUT_HOME to a folder of your own on a file system with permissions"
LOOPBACK = ("127.0.0.1", "localhost")


def auth_string(folder: Path) -> str:
    """Return the auth string of the servers with this PREFECT_HOME; the first call makes it."""
    return kept_secret(folder / FILE, lambda: f"resprout:{secrets.token_urlsafe(32)}")


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """Return the secret in the file at `path`, which is made where there is none, readable by its user alone.

    Of several processes at once one makes it, and the others read what that one wrote.

    Raises:
        BadInput: the file cannot be read, is empty, or others may read it.
    """
    with suppress(FileNotFoundError):
        return _read(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with disk_errors(path.parent), os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(make())
        # A link is made with its whole content, and only where there is none.
        with suppress(FileExistsError):
            os.link(new, path)
    except PermissionError:
        raise BadInput(f"{path.parent} is on a file system without links; {ELSEWHERE}") from None
    finally:
        os.unlink(new)
    return _read(path)


def _read(path: Path) -> str:
    try:
        found, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
    except PermissionError:
        raise BadInput(f"{path} holds a secret that this user cannot read; {ELSEWHERE}") from None
    if not found:
        raise BadInput(f"{path} should hold a secret and is empty; remove it, and the next command makes one")
    if mode & 0o077:
        raise BadInput(
            f"{path} holds a secret that other users can read; run `chmod 600 {path}`, or where that changes "
            f"nothing {ELSEWHERE}"
        )
    return found


def auth_for(url: str, folder: Path) -> str | None:
    """Return the auth string for the server at `url` where it is one of the home; None where it is not.

    A secret goes to no other process that listens at the same port.
    """
    return auth_string(folder) if own_server(url, folder) is not None else None


def own_server(url: str, folder: Path) -> dict[str, str] | None:
    """Return the environment of the process at the loopback address `url`; None where it is not the home's.

    The home's has this PREFECT_HOME, and belongs to the user who owns that folder.
    """
    place = urlsplit(url)
    if place.hostname not in LOOPBACK or place.port is None:
        return None
    holder = port_holder(place.port)
    if holder is None or holder.pid is None:
        return None
    with suppress(psutil.Error, OSError):
        process = psutil.Process(holder.pid)
        environment = process.environ()
        home = environment.get("PREFECT_HOME")
        if home is not None and _same(home, folder) and process.uids().effective == folder.stat().st_uid:
            return environment
    return None


def _same(home: str, folder: Path) -> bool:
    return Path(home).resolve() == folder.resolve()
