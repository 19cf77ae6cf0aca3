"""Checkpoints in a folder, and a progress that stops a training in the middle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.tasks.core.job import Progress


class Kept:
    """Checkpoints in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.steps = root, list[int]()

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield self.root / str(self.steps[-1]) if self.steps else None

    def save(self, folder: Path, step: int) -> None:
        assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json"}, (
            "the store takes no others"
        )
        shutil.copytree(folder, self.root / str(step), dirs_exist_ok=True)
        self.steps.append(step)


class Killed(Exception):
    """Stands for kill -9: nothing is written behind it."""


def killed_at(step: int) -> Progress:
    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            raise Killed

    return progress
