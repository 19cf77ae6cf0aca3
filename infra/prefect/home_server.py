"""The Prefect server of a home: one for all runs there that name no other, kept for a while after the last.

Prefect's own embedded server belongs to one process: ten runs at once start ten of them on one SQLite file,
Ctrl-C in a terminal reaches the server before its run, and `kill -9` of the run leaves it behind for ever.
Here every run holds a shared lock while it works. The first one starts the server, in a session of its own;
the server ends once it could take that lock alone for `infra.prefect.keep_server_seconds`, or its folder is
gone. The kernel drops a process's locks however it dies.
"""

from __future__ import annotations

import contextlib
import http
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from resprout.configs.errors import BadInput, Unreachable
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.logs import last_line
from resprout.infra.network import get, is_healthy
from resprout.infra.prefect.auth import CLIENT, FILE, SERVER, auth_string
from resprout.infra.prefect.server_process import application
from resprout.infra.store.filesystem import (
    exclusive_lock,
    free_bytes,
    megabytes,
    shared_lock,
    try_exclusive_lock,
)

if TYPE_CHECKING:
    import uvicorn

FOLDER = "server"
"""Folder below PREFECT_HOME with the locks, the address and the log of the server."""
ADDRESS = "address"
ROOM_BYTES = 64_000_000
"""Free bytes asked for before a run begins: the databases of Prefect and MLflow, and some to spare."""
START_SECONDS = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
"""Prefect's own variable for how long a server may take to start."""
HUNG_SECONDS = 30.0
"""A server that does not answer for so long is ended by the next run."""
LOOK_SECONDS = 0.5
"""How often the server looks whether a run is left."""
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""Prefect's settings for an embedded server: no pages, and only the services that one needs."""


@contextmanager
def home_server(infra: InfraConfig) -> Iterator[None]:
    """Name the home's server in PREFECT_API_URL; does nothing where the config or the variable names another.

    Called after `prepare` and before Prefect is imported, which reads the variable then.

    Raises:
        BadInput: the disk has no room for the server's database, or its auth string cannot be used.
        Unreachable: the server does not start, or asks for another auth string.
    """
    if infra.prefect.api_url or os.environ.get("PREFECT_API_URL"):
        yield
        return
    folder = Path(os.environ["PREFECT_HOME"]) / FOLDER
    _check_room(folder)
    auth, before = auth_string(folder.parent), os.environ.get(CLIENT)
    with shared_lock(folder / "users"):
        # One run starts it, the others wait and find it.
        with exclusive_lock(folder / "start"):
            url = _found(folder, auth) or _started(folder, infra.prefect.keep_server_seconds, auth)
        os.environ.update({"PREFECT_API_URL": url, CLIENT: auth})
        try:
            yield
        finally:
            for name, value in (("PREFECT_API_URL", None), (CLIENT, before)):
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def is_running(folder: Path) -> bool:
    """Whether the server with this folder runs."""
    with try_exclusive_lock(folder / "alive", create=False) as free:
        return not free and (folder / "alive").exists()


def _check_room(folder: Path) -> None:
    if (free := free_bytes(folder)) < ROOM_BYTES:
        raise BadInput(
            f"the disk of {folder.parent} has {megabytes(free)} free, and the databases of a run need "
            f"{megabytes(ROOM_BYTES)}; make room there, or set RESPROUT_HOME to a folder on a larger disk"
        )


def _found(folder: Path, auth: str) -> str | None:
    """The address of the server that runs; None where there is none, after one that hangs was ended.

    One that an older release started asks for no auth string, and ends after its last run as any other.
    """
    end = time.monotonic() + HUNG_SECONDS
    while time.monotonic() < end:
        with try_exclusive_lock(folder / "alive") as free:
            if free:
                return None
        if (url := _address(folder)) and is_healthy(f"{url}/health"):
            _check_auth(url, folder, auth)
            return url
        time.sleep(0.2)
    _kill(folder)
    return None


def _check_auth(url: str, folder: Path, auth: str) -> None:
    try:
        get(f"{url}/admin/version", auth)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == http.HTTPStatus.UNAUTHORIZED:
            raise Unreachable(
                f"the Prefect server of {folder.parent} was started with another auth string than that in "
                f"{folder.parent / FILE}; wait until its runs have ended and it is gone, then try again"
            ) from None


def _address(folder: Path) -> str:
    try:
        return (folder / ADDRESS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _kill(folder: Path) -> None:
    """End the server of this folder, whatever it is doing, and wait until its lock is free."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-4:-1] == ["-m", __name__, str(folder)]:
                process.kill()
    with exclusive_lock(folder / "alive"):
        pass


def _started(folder: Path, keep_seconds: float, auth: str) -> str:
    (folder / ADDRESS).unlink(missing_ok=True)
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(keep_seconds)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            # Away from the terminal, whose Ctrl-C would reach it before the run has reported its end.
            start_new_session=True,
            env={**os.environ, **EPHEMERAL, SERVER: auth},
        )
    seconds = float(os.environ[START_SECONDS])
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if (url := _address(folder)) and is_healthy(f"{url}/health"):
                return url
            if process.poll() is not None:
                raise Unreachable(
                    f"the Prefect server of {folder.parent} ended with code {process.returncode} as it "
                    f"started{_words(log)}; {log} has all of it"
                )
            time.sleep(0.1)
    except BaseException:
        process.kill()
        raise
    process.kill()
    raise Unreachable(
        f"the Prefect server of {folder.parent} did not answer within {seconds:.0f} s{_words(log)}; try "
        f"again on a less busy machine, or set {START_SECONDS}; {log} has all that it wrote"
    )


def _words(log: Path) -> str:
    return f" ({words})" if (words := last_line(log)) else ""


def serve(folder: Path, keep_seconds: float) -> None:
    """Run the server until no run has held its lock for so long; returns at once where another one runs."""
    with ExitStack() as held:
        if not held.enter_context(try_exclusive_lock(folder / "alive")):
            return
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = int(listening.getsockname()[1])
        app = application(port)
        import uvicorn

        config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        new = folder / f"{ADDRESS}.new"
        new.write_text(f"http://127.0.0.1:{port}/api", encoding="utf-8")
        new.rename(folder / ADDRESS)
        end = threading.Thread(
            target=_end_after_the_last_run, args=(folder, keep_seconds, server, held), daemon=True
        )
        end.start()
        server.run(sockets=[listening])


def _end_after_the_last_run(
    folder: Path, keep_seconds: float, server: uvicorn.Server, held: ExitStack
) -> None:
    used = time.monotonic()
    while folder.is_dir():
        with ExitStack() as tried:
            if not tried.enter_context(try_exclusive_lock(folder / "users", create=False)):
                used = time.monotonic()
            elif time.monotonic() - used >= keep_seconds:
                # Kept until the server is gone, so that a run which comes now waits and starts a new one.
                held.push(tried.pop_all())
                break
        time.sleep(LOOK_SECONDS)
    server.should_exit = True


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]))
