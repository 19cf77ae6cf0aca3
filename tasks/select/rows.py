"""Rows of JSONL files that may be larger than memory: what is held of each is where its line begins."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput

FILE = "rows.jsonl"


class Origin(NamedTuple):
    """Where a row is from: its source, its file there, its number in that; None of rows made of documents."""

    source: str | None
    file: str | None
    row: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Origin:
        """That of a row; many share the texts of one."""
        source, file = (None if row.get(key) is None else sys.intern(row[key]) for key in ("source", "file"))
        return cls(source, file, row.get("row"))

    @property
    def place(self) -> str:
        """It in words; empty of rows made of documents."""
        return "" if self.file is None else f"row {self.row} of {self.file}"


def check_categories(rows: Iterable[Mapping[str, Any]]) -> None:
    """BadInput where no row has a category."""
    if not any(row.get("category") for row in rows):
        raise BadInput(
            "select asks for stratified rows, but none of the pool has a category; give `category` in "
            "select.pool (a template such as '{{ task }}'), or another method"
        )


class Rows(Sequence[dict[str, Any]]):
    """Rows by the files and the places where their lines begin; each is read when it is asked for."""

    def __init__(self, paths: Sequence[Path], places: NDArray[np.int64]) -> None:
        """Open the files.

        Args:
            paths: The files.
            places: Of each row the number of its file and the byte at which its line begins: [rows, 2].
        """
        self.paths, self.places = paths, places
        self._opened = ExitStack()
        self._files = [self._opened.enter_context(path.open("rb")) for path in paths]

    def __del__(self) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        if isinstance(index, slice):
            return Rows(self.paths, self.places[index])
        which, place = self.places[index].tolist()
        self._files[which].seek(place)
        row: dict[str, Any] = json.loads(self._files[which].readline())
        return row

    def of(self, kept: NDArray[np.int64]) -> Rows:
        """The rows at these places."""
        return Rows(self.paths, self.places[kept])


def rows_by_id(*paths: Path) -> Rows:
    """All rows of JSONL files in the order of their ids."""
    ids, places = list[str](), array("q")
    for number, path in enumerate(paths):
        at = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    ids.append(json.loads(line)["id"])
                    places.extend((number, at))
                at += len(line)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    return Rows(paths, np.array(places, dtype=np.int64).reshape(-1, 2)[order])
