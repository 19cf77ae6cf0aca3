"""File locks that the kernel drops when their process dies, kill -9 included."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold `path` alone; waits for all other holders."""
    with _held(path, fcntl.LOCK_EX):
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold `path` together with other sharers; waits for an exclusive holder."""
    with _held(path, fcntl.LOCK_SH):
        yield


@contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Hold `path` alone and yield True, or yield False at once when somebody has it."""
    try:
        with _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield True
    except _Taken:
        yield False


class _Taken(Exception):
    pass


@contextmanager
def _held(path: Path, mode: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, mode)
        except BlockingIOError as error:
            raise _Taken from error
        yield
    finally:
        os.close(descriptor)
