"""Rows of a JSONL file that may be larger than memory: what is held of each is where its line begins."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

FILE = "rows.jsonl"


class Rows(Sequence[dict[str, Any]]):
    """Rows of a JSONL file by the places where their lines begin; each is read when it is asked for."""

    def __init__(self, path: Path, places: NDArray[np.int64]) -> None:
        self.path, self.places = path, places
        self.file = path.open("rb")

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        if isinstance(index, slice):
            return Rows(self.path, self.places[index])
        self.file.seek(self.places[index])
        row: dict[str, Any] = json.loads(self.file.readline())
        return row

    def of(self, kept: NDArray[np.int64]) -> Rows:
        """The rows at these places."""
        return Rows(self.path, self.places[kept])


def rows_by_id(path: Path) -> Rows:
    """All rows of a JSONL file in the order of their ids."""
    ids, places, at = list[str](), array("q"), 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                ids.append(json.loads(line)["id"])
                places.append(at)
            at += len(line)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    return Rows(path, np.array(places, dtype=np.int64)[order])
