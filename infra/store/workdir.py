"""Private folders that are removed at the end, or by a later process when theirs was killed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.infra.store import flock
from resprout.infra.store.faults import disk

MARK = ".alive"


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A new folder under `parent`, gone afterwards; what killed processes left there is removed first."""
    name = f"work-{uuid.uuid4().hex}"
    folder = parent / name
    with disk(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
    with flock.exclusive(parent / f"{name}{MARK}"):
        try:
            with disk(parent):
                folder.mkdir()
            yield folder
        finally:
            _remove(parent, name)


def _sweep(parent: Path) -> None:
    for mark in parent.glob(f"work-*{MARK}"):
        # Making the mark anew would make a folder that its owner has just taken look abandoned.
        with flock.try_exclusive(mark, create=False) as dead:
            if dead:
                _remove(parent, mark.name.removesuffix(MARK))


def _remove(parent: Path, name: str) -> None:
    shutil.rmtree(parent / name, ignore_errors=True)
    (parent / f"{name}{MARK}").unlink(missing_ok=True)
