"""Pinned data to JSONL: read, filter, split by hash, drop repeats, sample, render."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from heapq import nsmallest
from pathlib import Path
from typing import Any, TypeVar

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, DocumentSource, RowSource, TextSource
from resprout.infra.store.canonical import sha256_hex
from resprout.tasks.data.read import Numbered, format_of, read_rows
from resprout.tasks.data.render import compile_template, compile_where, hash_percent

T = TypeVar("T")
Columns = dict[str, Any]
Reader = Callable[[Path, str], Numbered]
"""Gives the rows of a file in a format, numbered."""

MARKUPS = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown",
    ".txt": "text", ".text": "text",
}  # fmt: skip
"""The markup of files that each hold one document, by file extension."""
NOT_DATA = ("readme", "license", "licence", "notice")


@dataclass(frozen=True)
class Item:
    """A row ready to be written: repeats are found by `text`, its main text; the split goes by `hashed`."""

    text: str
    hashed: str
    row: dict[str, Any]


def instruction_items(
    source: RowSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Rows in Alpaca form with a stable id.

    One without instruction or output, or on which a template fails, raises BadInput, or is left out and
    counted where the source says so.
    """
    hashed = _hashed(source)
    templates = {name: _of_columns(getattr(source, name)) for name in ("instruction", "input", "output")}
    # A category may be one word for all rows, whatever their columns are called.
    templates["category"] = compile_template(source.category)

    def render(columns: Columns) -> dict[str, str]:
        return {name: template(columns).strip() for name, template in templates.items()}

    def checked(place: str, columns: Columns) -> dict[str, str]:
        row = _at(place, render, columns)
        for name in ("instruction", "output"):
            if not row[name]:
                raise BadInput(
                    f"{place}: the {name} is empty; expected text from the template "
                    f"{getattr(source, name)!r}, or leave such rows out by `where`, or by on_bad_row: skip"
                )
        return row

    for place, columns in columns_in(source, files, read):
        row = _unless_bad(source, counts, partial(checked, place, columns))
        if row is None:
            continue
        text = "\n".join((row["instruction"], row["input"], row["output"]))
        yield Item(
            text,
            hashed(place, columns, text),
            {"id": sha256_hex(text.encode("utf-8", "surrogatepass")), "source": label, **row},
        )


def text_items(
    source: TextSource, label: str, files: dict[str, Path], read: Reader = read_rows
) -> Iterator[Item]:
    """Documents; an empty one raises BadInput."""
    render, hashed = _of_columns(source.text), _hashed(source)
    for place, columns in columns_in(source, files, read):
        text = _at(place, render, columns)
        if not text.strip():
            raise BadInput(
                f"{place}: the text is empty; expected text from the template {source.text!r}, or leave such "
                "rows out by `where`"
            )
        yield Item(text, hashed(place, columns, text), {"text": text, "source": label})


def document_items(
    source: DocumentSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Documents as they are written: files of text, Markdown or HTML as a whole, of data each row's text.

    One that is empty or not UTF-8, or on which a template fails, raises BadInput, or is left out and counted
    where the source says so.
    """
    hashed = _hashed(source)
    where = compile_where(source.where) if source.where else None

    def document(name: str, text: str, columns: Columns) -> Item:
        if not text.strip():
            raise BadInput(
                f"{name}: the document is empty; leave it out by `where`, or such ones by on_bad_row: skip"
            )
        markup = source.markup if source.markup != "auto" else MARKUPS.get(Path(name).suffix.lower(), "text")
        id = sha256_hex(text.encode("utf-8", "surrogatepass"))
        row = {"id": id, "name": name, "markup": markup, "text": text, "source": label}
        return Item(text, hashed(name, columns, text), row)

    def of_file(name: str, path: Path) -> Item | None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{name}: expected UTF-8, found byte {error.object[error.start]:#x}; convert the file, or "
                "leave such ones out by on_bad_row: skip"
            ) from error
        columns = {"text": text, "name": name}
        return document(name, text, columns) if where is None or _at(name, where, columns) else None

    def of_row(place: str, columns: Columns) -> Item:
        return document(place, _at(place, render, columns), columns)

    written = {name: path for name, path in files.items() if Path(name).suffix.lower() in MARKUPS}
    for name, path in sorted(written.items()):
        if item := _unless_bad(source, counts, partial(of_file, name, path)):
            yield item
    rest = {name: path for name, path in files.items() if name not in written}
    if written and not any(_is_data(source, Path(name)) for name in rest):
        return
    render = _of_columns(source.text)
    for place, columns in columns_in(source, rest, read):
        if item := _unless_bad(source, counts, partial(of_row, place, columns)):
            yield item


def _unless_bad(source: RowSource | DocumentSource, counts: Counts | None, make: Callable[[], T]) -> T | None:
    """What is made; None where that fails and the source has such rows skipped, which is counted."""
    try:
        return make()
    except BadInput as fault:
        if source.on_bad_row == "fail" or counts is None:
            raise
        counts.skip(fault)
        return None


def _is_data(source: DataSource, path: Path) -> bool:
    try:
        return source.format != "auto" or bool(format_of(path))
    except BadInput:
        return False


def raw_items(
    source: DataSource, label: str, files: dict[str, Path], read: Reader = read_rows
) -> Iterator[Item]:
    """Rows with their own columns, which name no source."""
    hashed = _hashed(source)
    for place, columns in columns_in(source, files, read):
        text = _at(place, lambda row: json.dumps(row, sort_keys=True), columns)
        yield Item(text, hashed(place, columns, text), columns)


def _hashed(source: DataSource) -> Callable[[str, Columns, str], str]:
    """A function from a row's place, columns and main text to the text whose hash decides the split."""
    if source.hash_of is None:
        return lambda place, columns, text: text
    template = _of_columns(source.hash_of)
    return lambda place, columns, text: _at(place, template, columns)


def _of_columns(template: str) -> Callable[[Columns], str]:
    """A compiled template; a row that has a column by that bare name raises BadInput."""
    render, name = compile_template(template), template.strip(" {}")

    def checked(columns: Columns) -> str:
        if name in columns and "{{" not in template:
            raise BadInput(
                f"the template {template!r} is literal text, the same in every row; to take the column of "
                f"that name, write '{{{{ {name} }}}}'"
            )
        return render(columns)

    return checked


@dataclass
class Counts:
    """Rows that were left out: those that repeat another one's text, and those that are no rows."""

    repeated: int = 0
    bad: int = 0
    first_bad: str = ""
    """The error message of the first bad row."""

    def skip(self, fault: BadInput) -> None:
        """Leave a row out."""
        self.bad += 1
        self.first_bad = self.first_bad or str(fault)


def taken(
    items: Iterable[Item], source: DataSource, seed: int, unique: bool, counts: Counts | None = None
) -> Iterator[Item]:
    """Items in the source's hash range, at most `limit` of them, in the file's order.

    The sample is the `limit` items with the lowest SHA-256 of seed and text, which no library changes. Of
    what is not taken nothing is held but a digest, and that only where items are `unique`.

    Raises:
        BadInput: not one is left, after the last.
    """
    low, high = source.hash_percent
    counts, any_left = counts or Counts(), False

    def wanted() -> Iterator[Item]:
        seen = Seen(counts)
        for item in items:
            if low <= hash_percent(item.hashed) < high and not (unique and seen(item)):
                yield item

    chosen = wanted() if source.limit is None else iter(_lowest(wanted(), source.limit, seed))
    for item in chosen:
        any_left = True
        yield item
    if not any_left:
        bad = (
            f"; {counts.bad} were skipped by on_bad_row, the first: {counts.first_bad}" if counts.bad else ""
        )
        raise BadInput(
            f"{source.source}: no row is left after where {source.where!r} and hash_percent [{low}, {high})"
            f"{bad}; widen them"
        )


class Seen:
    """Says whether an item's text came before, and counts those that did."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self._digests = set[bytes]()

    def __call__(self, item: Item) -> bool:
        digest = blake2b(item.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._digests:
            self.counts.repeated += 1
            return True
        self._digests.add(digest)
        return False


def _lowest(items: Iterable[Item], limit: int, seed: int) -> list[Item]:
    """The `limit` items of the lowest rank, in their order."""
    ranked = ((_rank(seed, item.text), place, item) for place, item in enumerate(items))
    kept = nsmallest(limit, ranked, key=lambda one: one[:2])
    return [item for _, _, item in sorted(kept, key=lambda one: one[1])]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, ASCII only: some readers take U+2028 for the end of a line."""
    with path.open("w", encoding="ascii") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True) + "\n")


def columns_in(
    source: DataSource, files: dict[str, Path], read: Reader
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row that the source's condition lets through: its place in words, and its columns."""
    where = compile_where(source.where) if source.where else None
    for name, path in _data_files(source, files):
        shown = source.source if len(files) == 1 else f"{source.source.rstrip('/')}/{name}"
        for number, columns in _named(shown, path, source.format, read):
            place = f"{shown}, row {number}"
            if where is None or _at(place, where, columns):
                yield place, columns


def _named(name: str, path: Path, form: str, read: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file whose faults name the file as the config does, not where it was brought to."""
    try:
        yield from read(path, form)
    except BadInput as error:
        raise BadInput(str(error).replace(str(path), name)) from error


def _data_files(source: DataSource, files: dict[str, Path]) -> list[tuple[str, Path]]:
    if len(files) == 1:
        return list(files.items())
    found = []
    for name, path in sorted(files.items()):
        if Path(name).name.lower().startswith(NOT_DATA):
            continue
        if source.format == "auto":
            try:
                format_of(path)
            except BadInput:
                continue
        found.append((name, path))
    if not found:
        raise BadInput(
            f"{source.source} holds no data file among {', '.join(sorted(files)[:5])}; "
            "name one file, or set format"
        )
    return found


def _at(place: str, call: Callable[[Columns], T], columns: Columns) -> T:
    try:
        return call(columns)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"{place}: expected plain columns, found {error}") from error


def _rank(seed: int, text: str) -> str:
    return sha256_hex(f"{seed}\n{text}".encode("utf-8", "surrogatepass"))
