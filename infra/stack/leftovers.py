"""Processes that belong to a stack, known by a mark in their environment that their children inherit."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

STACK = "_RESPROUT_STACK"
PART = "_RESPROUT_PART"
GRACE_SECONDS = 10.0


def mark(home: Path) -> str:
    """What the processes of the stack with this data folder carry."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]


def of_stack(stack: str) -> Iterator[tuple[psutil.Process, str]]:
    """Live processes of this user that carry the mark, each with its part ('' for the supervisor)."""
    me = psutil.Process()
    own = {me.pid, *(parent.pid for parent in me.parents())}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(STACK) == stack and process.status() != psutil.STATUS_ZOMBIE:
                yield process, environment.get(PART, "")


def of_part(stack: str, part: str) -> list[psutil.Process]:
    """Live processes of one part."""
    return [process for process, found in of_stack(stack) if found == part]


def end(processes: list[psutil.Process], seconds: float = GRACE_SECONDS) -> None:
    """Ask the processes to end, kill those that do not; psutil tells a new process with an old id apart."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                ask(process)
        until = time.monotonic() + seconds
        while (processes := [one for one in processes if _runs(one)]) and time.monotonic() < until:
            time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    """Not so for one that ended and whose parent has not looked yet."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def inherited() -> dict[str, str]:
    """The environment of this process without settings of resprout, which the stack hands on itself."""
    own = ("RESPROUT_", STACK, PART)
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}
