"""Pinned data to JSONL: read, filter, split by hash, drop repeats, sample, render."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from heapq import nsmallest
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, DocumentSource, RowSource, TextSource
from resprout.infra.store.canonical import sha256_hex
from resprout.tasks.acquire.sources.local import is_pattern
from resprout.tasks.data.read import (
    DAMAGED_GZIP,
    Numbered,
    Skip,
    ending_of,
    may_hold,
    open_unpacked,
    read_rows,
)
from resprout.tasks.data.render import compile_template, compile_where, hash_percent

T = TypeVar("T")
Columns = dict[str, Any]
Reader = Callable[[Path, str, Skip | None], Numbered]
"""Gives the rows of a file in a format, numbered; what cannot be read is skipped or raised."""

MARKUPS = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown",
    ".txt": "text", ".text": "text",
}  # fmt: skip
"""The markup of files that each hold one document, by file extension."""
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside those with rows."""
NOT_DATA = ("readme", "license", "licence", "notice", "_")
"""How the names of other files begin that hold no rows; Spark marks its own by the underscore."""
FIRST_BAD = 5
"""Bad rows that are named; the others are counted."""


class Located(NamedTuple):
    """A row of a source: its place in words, its file there, its number in that, and its columns."""

    place: str
    file: str
    number: int
    columns: Columns


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
    """Rows in Alpaca form with a stable id, each with its file and its number there.

    One without instruction or output is bad, as `each_row` says.
    """
    hashed = _hashed(source)
    templates = {name: _of_columns(getattr(source, name)) for name in ("instruction", "input", "output")}
    # A category may be one word for all rows, whatever their columns are called.
    templates["category"] = compile_template(source.category)

    def render(columns: Columns) -> dict[str, str]:
        return {name: template(columns).strip() for name, template in templates.items()}

    def item(found: Located) -> Item:
        row = _at(found.place, render, found.columns)
        for name in ("instruction", "output"):
            if not row[name]:
                raise BadInput(
                    f"{found.place}: the {name} is empty; expected text from the template "
                    f"{getattr(source, name)!r}, or leave such rows out by `where`, or by on_bad_row: skip"
                )
        text = "\n".join((row["instruction"], row["input"], row["output"]))
        id = sha256_hex(text.encode("utf-8", "surrogatepass"))
        origin = {"source": label, "file": found.file, "row": found.number}
        return Item(text, hashed(found.place, found.columns, text), {"id": id, **origin, **row})

    return each_row(source, files, read, item, counts)


def text_items(
    source: TextSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Documents; an empty one is bad, as `each_row` says."""
    render, hashed = _of_columns(source.text), _hashed(source)

    def item(found: Located) -> Item:
        text = _at(found.place, render, found.columns)
        if not text.strip():
            raise BadInput(
                f"{found.place}: the text is empty; expected text from the template {source.text!r}, or "
                "leave such rows out by `where`, or by on_bad_row: skip"
            )
        return Item(text, hashed(found.place, found.columns, text), {"text": text, "source": label})

    return each_row(source, files, read, item, counts)


def document_items(
    source: DocumentSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Documents as they are written: files of text, Markdown or HTML as a whole, of data each row's text.

    An empty one is bad, as `each_row` says, and so is a file that is no UTF-8.
    """
    counts, hashed = counts or Counts(), _hashed(source)
    names, _ = files_of(source, files)
    written = _written(source, sorted(files)).intersection(names)
    where = compile_where(source.where) if source.where else None

    def whole(name: str) -> Item | None:
        try:
            # Not `read_text`, which turns line endings into others: places are those of the file.
            with open_unpacked(files[name]) as file:
                text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{name}: expected UTF-8, found byte {error.object[error.start]:#x}; convert the file, or "
                "leave such ones out by on_bad_row: skip"
            ) from error
        except DAMAGED_GZIP as error:
            raise BadInput(
                f"{name}: expected gzip data, found a damaged or unfinished file ({error}); fetch it again, "
                "or leave such ones out by on_bad_row: skip"
            ) from error
        columns = {"text": text, "name": name}
        if where is not None and not _at(name, where, columns):
            counts.by_where += 1
            return None
        return _document(source, label, name, name, text, hashed(name, columns, text))

    for name in sorted(written):
        try:
            made = whole(name)
        except BadInput as fault:
            counts.take(source, name, 1, fault)
            continue
        if made is not None:
            yield made
    rest = {name: files[name] for name in names if name not in written}
    if not rest:
        return
    for name in rest:
        if source.format == "auto" and not may_hold(Path(name), "auto"):
            raise BadInput(
                f"{source.source}: documents are not read of {name}, but of {', '.join(MARKUPS)}, and of "
                "data with a text in each row (.jsonl, .json, .parquet, .csv, .arrow; set format where the "
                "name does not say it); convert it, a PDF to text say"
            )
    render = _of_columns(source.text)

    def item(found: Located) -> Item:
        text, title = _at(found.place, render, found.columns), found.columns.get("title")
        title = title if isinstance(title, str) else ""
        return _document(source, label, found.place, title, text, hashed(found.place, found.columns, text))

    yield from each_row(source, rest, read, item, counts)


def _document(source: DocumentSource, label: str, name: str, title: str, text: str, hashed: str) -> Item:
    if not text.strip():
        raise BadInput(
            f"{name}: the document is empty; leave it out by `where`, or such ones by on_bad_row: skip"
        )
    markup = source.markup if source.markup != "auto" else MARKUPS.get(ending_of(Path(name)), "text")
    id = sha256_hex(text.encode("utf-8", "surrogatepass"))
    about = {"id": id, "name": name, "title": title, "source": label}
    return Item(text, hashed, {**about, "markup": markup, "text": text})


def raw_items(
    source: DataSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Rows with their own columns, which name no source; bad as `each_row` says."""
    hashed = _hashed(source)

    def item(found: Located) -> Item:
        text = _at(found.place, lambda row: json.dumps(row, sort_keys=True), found.columns)
        return Item(text, hashed(found.place, found.columns, text), found.columns)

    return each_row(source, files, read, item, counts)


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


class BadRow(NamedTuple):
    """A row that was left out: its file in the source, its number there, and what is wrong."""

    file: str
    number: int
    fault: str


@dataclass
class Counts:
    """Rows that were left out: those that repeat another one's text, that are no rows, that `where` does not
    hold for, and that lie outside `hash_percent`.
    """

    repeated: int = 0
    bad: int = 0
    by_where: int = 0
    by_hash: int = 0
    first_bad: list[BadRow] = field(default_factory=list)

    def skip(self, file: str, number: int, fault: BadInput) -> None:
        """Leave a row out."""
        self.bad += 1
        if len(self.first_bad) < FIRST_BAD:
            self.first_bad.append(BadRow(file, number, str(fault)))

    def take(self, source: DataSource, file: str, number: int, fault: BadInput) -> None:
        """Leave a row out where the source says so, else raise its fault."""
        if source.on_bad_row == "fail":
            raise fault
        self.skip(file, number, fault)

    @property
    def said(self) -> str:
        """The bad rows in words; empty where there are none."""
        shown = "; ".join(one.fault for one in self.first_bad)
        return f"{self.bad:,} were skipped by on_bad_row, the first: {shown}" if self.bad else ""


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
            if not low <= hash_percent(item.hashed) < high:
                counts.by_hash += 1
            elif not (unique and seen(item)):
                yield item

    chosen = wanted() if source.limit is None else iter(_lowest(wanted(), source.limit, seed))
    for item in chosen:
        any_left = True
        yield item
    if not any_left:
        raise BadInput(_none_left(source, counts))


def _none_left(source: DataSource, counts: Counts) -> str:
    """Which setting left out how many of all rows, and what to do about it."""
    low, high = source.hash_percent
    causes, advice = list[str](), list[str]()
    if counts.by_where:
        causes.append(f"where {source.where!r} leaves out {counts.by_where:,}")
        advice.append("widen where")
    if counts.by_hash:
        causes.append(f"hash_percent [{low}, {high}) leaves out {counts.by_hash:,}")
        advice.append("widen hash_percent")
    if counts.bad:
        causes.append(counts.said)
        advice.append("mend its rows")
    rows = counts.by_where + counts.by_hash + counts.bad
    return f"{source.source}: no row is left of {rows:,}: {'; '.join(causes)}; {', or '.join(advice)}"


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


def each_row(
    source: DataSource,
    files: dict[str, Path],
    read: Reader,
    make: Callable[[Located], T],
    counts: Counts | None = None,
) -> Iterator[T]:
    """Apply `make` to each row for which the source's `where` holds.

    A row that cannot be read, or for which `where` or `make` raises BadInput, is bad: with `on_bad_row: skip`
    it is left out and counted, else its error is raised.
    """
    counts, where = counts or Counts(), compile_where(source.where) if source.where else None
    names, _ = files_of(source, files)
    for name in names:
        shown = source.source if len(files) == 1 else _named_in(source.source, name)
        skip = partial(counts.skip, name) if source.on_bad_row == "skip" else None
        for number, columns in _named(shown, files[name], source.format, read, skip):
            found = Located(f"{shown}, row {number}", name, number, columns)
            try:
                if where is not None and not _at(found.place, where, columns):
                    counts.by_where += 1
                    continue
                made = make(found)
            except BadInput as fault:
                counts.take(source, name, number, fault)
                continue
            yield made


def _named_in(address: str, name: str) -> str:
    """A file of a source with its folder, of a pattern the last one before it."""
    folders = takewhile(lambda part: not is_pattern(part), address.rstrip("/").split("/"))
    return "/".join([*folders, name])


def _named(
    name: str, path: Path, form: str, read: Reader, skip: Skip | None
) -> Iterator[tuple[int, Columns]]:
    """Rows of a file whose faults name the file as the config does, not where it was brought to."""

    def renamed(fault: BadInput) -> BadInput:
        return BadInput(str(fault).replace(str(path), name))

    try:
        yield from read(path, form, None if skip is None else lambda one, fault: skip(one, renamed(fault)))
    except BadInput as error:
        raise renamed(error) from error


def files_of(source: DataSource, files: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """The names of the files that are read of a source, and of those that are passed over, each in order.

    One file is read whatever its name. Of several those are that end as the format asks, or, where none does,
    have no ending; all that a pattern finds, where a format is given. Files about the data hold none.

    Raises:
        BadInput: none is left to read.
    """
    names, given = sorted(files), source.format != "auto"
    if len(names) == 1:
        return names, []
    written = _written(source, names)
    maybe = [name for name in names if name not in written and not is_about_data(name)]
    data = [name for name in maybe if may_hold(Path(name), source.format)]
    if given and is_pattern(source.source):
        data = maybe
    elif given and not data:
        data = [name for name in maybe if not Path(name).suffix]
    if not written and not data:
        asked = f" of format {source.format}" if given else ""
        raise BadInput(
            f"{source.source} holds no data file{asked} among {', '.join(names[:5])}; name one file, or set "
            "format to what they are"
        )
    read = written.union(data)
    return sorted(read), [name for name in names if name not in read]


def is_about_data(name: str) -> bool:
    """Whether a file only describes the data beside it."""
    last = name.rpartition("/")[2].lower()
    return last in ABOUT_DATA or last.startswith(NOT_DATA)


def _written(source: DataSource, names: Sequence[str]) -> set[str]:
    """Files that are one document each as a whole.

    Where a format is given, one file is of it, and so is text that a pattern finds.
    """
    given = source.format != "auto"
    if not isinstance(source, DocumentSource) or (given and len(names) == 1):
        return set()
    markups = {name: MARKUPS.get(ending_of(Path(name))) for name in names}
    is_data = {"text", None} if given and is_pattern(source.source) else {None}
    return {name for name, markup in markups.items() if markup not in is_data}


def _at(place: str, call: Callable[[Columns], T], columns: Columns) -> T:
    try:
        return call(columns)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"{place}: expected plain columns, found {error}") from error


def _rank(seed: int, text: str) -> str:
    return sha256_hex(f"{seed}\n{text}".encode("utf-8", "surrogatepass"))
