"""What models said of rows: each row is asked about once, also where a selection was interrupted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from resprout.tasks.core.job import Checkpoints, Progress
from resprout.tasks.core.termination import deferred_termination

FILE = "rows.safetensors"
ROWS = "rows"
"""Column of a table at rest: which rows the others are of."""
CHECKPOINT_MINUTES = 10

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Numbers of rows by name: [rows] or [rows, width]."""


class Table:
    """Columns of numbers of so many rows, not numbers where they are not `known` yet."""

    def __init__(self, rows: int) -> None:
        self.known = np.zeros(rows, dtype=bool)
        self.columns = dict[str, NDArray[Any]]()

    def put(self, rows: Sequence[int] | NDArray[np.int64], given: Columns) -> None:
        """Take over what is given of these rows, one after another."""
        for name, values in given.items():
            if name not in self.columns:
                shape = (len(self.known), *values.shape[1:])
                self.columns[name] = np.full(shape, np.nan, dtype=values.dtype)
            self.columns[name][rows] = values
        self.known[rows] = True

    def column(self, name: str) -> NDArray[Any]:
        """A column of all rows."""
        return self.columns[name] if name in self.columns else np.full(len(self.known), np.nan)

    def missing(self, rows: Iterable[int]) -> NDArray[np.int64]:
        """Those of the rows that are not known."""
        return np.array([row for row in rows if not self.known[row]], dtype=np.int64)


class KeptRows:
    """Tables by name, kept every ten minutes and when a signal ends the process."""

    def __init__(self, checkpoints: Checkpoints | None, progress: Progress) -> None:
        """Open what an interrupted call kept; without `checkpoints` nothing is."""
        self._checkpoints, self._progress = checkpoints, progress
        self._tables, self._saved = dict[str, Table](), time.monotonic()
        with nullcontext() if checkpoints is None else checkpoints.latest() as before:
            self._before = {} if before is None else load_file(before / FILE)

    def table(self, name: str, rows: int) -> Table:
        """The table of this name, of so many rows."""
        if name not in self._tables:
            table = self._tables[name] = Table(rows)
            mine = [key for key in self._before if key.startswith(f"{name}/")]
            kept = {key.removeprefix(f"{name}/"): self._before.pop(key) for key in mine}
            if kept:
                table.put(kept.pop(ROWS), kept)
        return self._tables[name]

    def complete(
        self,
        name: str,
        lengths: Sequence[int],
        batches_of: Callable[[Sequence[int]], Iterable[Sequence[int]]],
        of: Callable[[list[int]], Columns],
        what: str,
    ) -> Table:
        """The table of this name with all of its rows, of which those are asked for that are missing.

        Args:
            name: The table's.
            lengths: Tokens of each row.
            batches_of: Divides rows of given lengths into batches.
            of: Gives the columns of the rows of a batch.
            what: The rows' name in the progress.
        """
        table = self.table(name, len(lengths))
        missing = table.missing(range(len(lengths)))
        self.ask(table, missing, batches_of([lengths[row] for row in missing.tolist()]), of, what)
        return table

    def ask(
        self,
        table: Table,
        rows: NDArray[np.int64],
        batches: Iterable[Sequence[int]],
        of: Callable[[list[int]], Columns],
        what: str,
    ) -> None:
        """Put into a table what `of` says of these rows, batch by batch.

        Args:
            table: One of these tables.
            rows: Rows that are missing in it.
            batches: Places in `rows`.
            of: Gives the columns of the rows of a batch.
            what: The rows' name in the progress.
        """
        done = 0
        with deferred_termination() as ending:
            for places in batches:
                batch = rows[places].tolist()
                table.put(batch, of(batch))
                done += len(batch)
                if not ending.asked:
                    self._progress(done, len(rows), what)
                if ending.asked or time.monotonic() - self._saved > 60 * CHECKPOINT_MINUTES:
                    self._save()
                    self._saved = time.monotonic()
                if ending.asked:
                    break

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        arrays, step = dict(self._before), 0
        for name, table in self._tables.items():
            rows = np.flatnonzero(table.known)
            step += len(rows)
            if len(rows):
                arrays |= {f"{name}/{key}": column[rows] for key, column in table.columns.items()}
                arrays[f"{name}/{ROWS}"] = rows
        with tempfile.TemporaryDirectory(prefix="resprout-rows-") as folder:
            save_file(arrays, Path(folder) / FILE)
            self._checkpoints.save(Path(folder), step)
