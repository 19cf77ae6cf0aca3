"""Look at the files that a user gives: their columns, how much text they hold, and what of it to hold out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, RowSource, TextSource
from resprout.flows.inputs import find
from resprout.flows.validate import data_files
from resprout.tasks.acquire.rows import (
    Counts,
    Item,
    Located,
    Reader,
    each_row,
    files_of,
    instruction_items,
    taken,
    text_items,
)
from resprout.tasks.acquire.source import Context, Wanted
from resprout.tasks.data.columns import Mapped, pair_text, row_columns, text_columns
from resprout.tasks.data.read import read_rows
from resprout.tasks.data.render import hash_percent

ROWS, CHARACTERS = 20_000, 50_000_000
"""Of a source that are looked at; what is behind them is taken for more of the same."""
SKIP: dict[str, Any] = {"on_bad_row": "skip"}
"""Of a large file few rows are looked at, and one bad row behind them should not end a run."""
SKIPPED = "rows that cannot be read or have no text are left out and counted (on_bad_row: skip)"
MOST_NAMES = 4


@dataclass(frozen=True)
class Found:
    """A source that was looked at: its settings, what was found, and its different rows.

    `whole` says whether these are all; a source elsewhere is not opened, and has none.
    """

    settings: dict[str, Any]
    why: Sequence[str]
    items: Sequence[Item] = ()
    whole: bool = False

    @property
    def address(self) -> str:
        """The source."""
        return str(self.settings["source"])

    @property
    def opened(self) -> bool:
        """Whether its rows are known."""
        return bool(self.items)

    def restricted(self, to: Sequence[Mapping[str, Any]]) -> Found:
        """The rows on the side of these sources of a split."""
        if "hash_percent" not in to[0]:
            return self
        low, high = to[0]["hash_percent"]
        items = [item for item in self.items if low <= hash_percent(item.hashed) < high]
        return replace(self, settings={**self.settings, "hash_percent": [low, high]}, items=items)

    def part(self, low: int, high: int) -> list[str]:
        """The texts whose hash is in this range of percent."""
        return [item.text for item in self.items if low <= hash_percent(item.hashed) < high]


def look_at_text(address: str, here: Context) -> Found:
    """The look at running text; BadInput where the file is not there or has none."""
    return _look(address, here, text_columns, _documents)


def look_at_pool(address: str, here: Context) -> Found:
    """The look at instruction rows; BadInput where the file is not there or has none."""
    return _look(address, here, row_columns, _pairs)


def look_at_both(address: str, here: Context) -> tuple[Found, Found]:
    """The look at instruction rows, and at the same rows as running text.

    Both are split by the task, so that no row is trained on and held out.
    """
    pool = _look(address, here, partial(_split_by_task, row_columns), _pairs)
    text = _look(address, here, partial(_split_by_task, _as_text), _documents)
    return pool, text


def _as_text(rows: Sequence[Mapping[str, Any]], place: str) -> Mapped:
    return pair_text(row_columns(rows, place))


def _split_by_task(
    columns: Callable[[Sequence[Mapping[str, Any]], str], Mapped],
    rows: Sequence[Mapping[str, Any]],
    place: str,
) -> Mapped:
    found, task = columns(rows, place), row_columns(rows, place).expressions["instruction"]
    return Mapped({**found.settings, "hash_of": f"{{{{ {task} }}}}"}, found.taken, found.expressions)


def _documents(settings: dict[str, Any], files: dict[str, Path], read: Reader, counts: Counts) -> list[Item]:
    source = TextSource(**settings)
    items = text_items(source, source.source, files, read, counts)
    return list(taken(items, source, 0, True, counts))


def _pairs(settings: dict[str, Any], files: dict[str, Path], read: Reader, counts: Counts) -> list[Item]:
    source = RowSource(**settings)
    items = instruction_items(source, source.source, files, read, counts)
    return list(taken(items, source, 0, True, counts))


def _look(
    address: str,
    here: Context,
    columns: Callable[[Sequence[Mapping[str, Any]], str], Mapped],
    items: Callable[[dict[str, Any], dict[str, Path], Reader, Counts], list[Item]],
) -> Found:
    settings: dict[str, Any] = {"source": address}
    place = find(address, Wanted("data"), here)
    if place is None:
        assumed = f"{address}: not opened, because it is elsewhere: the usual column names are assumed"
        return Found({**settings, **SKIP}, [assumed, SKIPPED])
    source, files, counts = DataSource(**settings, **SKIP), data_files(address, here), Counts()
    rows, whole = _first_rows(source, files, counts)
    if not rows and counts.bad:
        raise BadInput(f"{address} has no row that can be read; {counts.said}")
    mapped = columns([one.columns for one in rows], address)
    settings |= {**mapped.settings, **SKIP}
    seen: dict[Path, list[tuple[int, dict[str, Any]]]] = {path: [] for path in files.values()}
    for one in rows:
        seen[files[one.file]].append((one.number, one.columns))
    found = items(settings, files, lambda path, form, skip, most: iter(seen[path]), counts)
    of_files = [_files(*files_of(source, files))] if len(files) > 1 else []
    return Found(settings, [f"{address}: {mapped.taken}", *of_files, _bad(counts, whole)], found, whole)


def _first_rows(source: DataSource, files: dict[str, Path], counts: Counts) -> tuple[list[Located], bool]:
    """Rows of a source as far as they are looked at, and whether these are all."""
    rows: list[Located] = []
    characters = 0
    for row in each_row(source, files, read_rows, lambda one, texts: one, counts):
        if len(rows) == ROWS or characters > CHARACTERS:
            return rows, False
        rows.append(row)
        characters += sum(len(value) for value in row.columns.values() if isinstance(value, str))
    return rows, True


def _files(read: Sequence[str], passed_over: Sequence[str]) -> str:
    """Which files of a folder are read, and which are passed over."""
    return f"read: {_some(read)}; passed over: {_some(passed_over)}"


def _some(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names) or "nothing"
    return f"{len(names):,} files from {names[0]} to {names[-1]}"


def _bad(counts: Counts, whole: bool) -> str:
    """How bad rows are handled, and how many were seen."""
    if not counts.bad:
        return SKIPPED
    return f"{SKIPPED}; {'' if whole else 'so far '}{counts.bad:,}, the first: {counts.first_bad[0].fault}"
