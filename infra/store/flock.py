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
def try_exclusive(path: Path, create: bool = True) -> Iterator[bool]:
    """Hold `path` alone and yield True, or yield False at once when somebody has it.

    Without `create`, also when there is no such file.
    """
    try:
        with _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create):
            yield True
    except _Taken:
        yield False


class _Taken(Exception):
    pass


@contextmanager
def _held(path: Path, mode: int, create: bool = True) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, mode, create)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, mode: int, create: bool) -> int:
    """A descriptor with the lock on the file that is at `path` now.

    Between opening and locking, a holder may have removed the file: then the lock is on a file that nobody
    else can see, and the next try takes the one that is there.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        except FileNotFoundError as error:
            if create:
                raise
            raise _Taken from error
        try:
            fcntl.flock(descriptor, mode)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise _Taken from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
