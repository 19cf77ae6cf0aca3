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
from types import MappingProxyType
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
    too_large,
)
from resprout.tasks.data.render import RowTemplates, Unbounded, hash_percent

T = TypeVar("T")
Columns = dict[str, Any]
Texts = Mapping[str, str]
"""Rendered templates by their names."""
Reader = Callable[[Path, str, Skip | None, int], Numbered]
"""Gives the rows of a file in a format, in parts of so many bytes at most, numbered; what cannot be read is
skipped or raised."""

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
    templates = {name: getattr(source, name) for name in ("instruction", "input", "output", "category")}

    def item(found: Located, texts: Texts) -> Item:
        # A category may be one word for all rows, whatever their columns are called.
        _require_not_literal(source, found.columns, *(templates[name] for name in INSTRUCTION))
        row = {name: texts[name].strip() for name in templates}
        for name in ("instruction", "output"):
            if not row[name]:
                raise BadInput(
                    f"the {name} is empty; expected text from the template {templates[name]!r}, or leave "
                    "such rows out by `where`, or by on_bad_row: skip"
                )
        text = "\n".join((row["instruction"], row["input"], row["output"]))
        id = sha256_hex(text.encode("utf-8", "surrogatepass"))
        origin = {"source": label, "file": found.file, "row": found.number}
        return Item(text, texts.get(HASHED, text), {"id": id, **origin, **row})

    return each_row(source, files, read, item, counts, templates)


def text_items(
    source: TextSource,
    label: str,
    files: dict[str, Path],
    read: Reader = read_rows,
    counts: Counts | None = None,
) -> Iterator[Item]:
    """Documents; an empty one is bad, as `each_row` says."""

    def item(found: Located, texts: Texts) -> Item:
        _require_not_literal(source, found.columns, source.text)
        if not (text := texts["text"]).strip():
            raise BadInput(
                f"the text is empty; expected text from the template {source.text!r}, or leave such rows out "
                "by `where`, or by on_bad_row: skip"
            )
        return Item(text, texts.get(HASHED, text), {"text": text, "source": label})

    return each_row(source, files, read, item, counts, {"text": source.text})


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
    counts, templates = counts or Counts(), _templates(source)
    names, _ = files_of(source, files)
    written = _written(source, sorted(files)).intersection(names)

    def whole(name: str) -> Item | None:
        try:
            # Not `read_text`, which turns line endings into others: places are those of the file.
            with open_unpacked(files[name]) as file:
                content = file.read(source.max_part + 1)
            if len(content) > source.max_part:
                raise too_large(name, source.max_part)
            text = content.decode("utf-8-sig")
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
        if (texts := _at(name, templates, columns)) is None:
            counts.by_where += 1
            return None
        _at(name, partial(_require_not_literal, source), columns)
        return _document(source, label, name, name, text, texts.get(HASHED, text))

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

    def item(found: Located, texts: Texts) -> Item:
        _require_not_literal(source, found.columns, source.text)
        text, title = texts["text"], found.columns.get("title")
        title = title if isinstance(title, str) else ""
        return _document(source, label, found.place, title, text, texts.get(HASHED, text), named=False)

    yield from each_row(source, rest, read, item, counts, {"text": source.text})


def _document(
    source: DocumentSource, label: str, name: str, title: str, text: str, hashed: str, named: bool = True
) -> Item:
    if not text.strip():
        raise BadInput(
            f"{f'{name}: ' if named else ''}the document is empty; leave it out by `where`, or such ones "
            "by on_bad_row: skip"
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

    def item(found: Located, texts: Texts) -> Item:
        _require_not_literal(source, found.columns)
        text = json.dumps(found.columns, sort_keys=True)
        return Item(text, texts.get(HASHED, text), found.columns)

    return each_row(source, files, read, item, counts)


INSTRUCTION = ("instruction", "input", "output")
HASHED = "hash_of"
"""The template of the text whose hash decides the split, where a source has one."""


def _templates(source: DataSource, templates: Texts = MappingProxyType({})) -> RowTemplates:
    """The templates of a source, those of split and condition among them."""
    hashed = {} if source.hash_of is None else {HASHED: source.hash_of}
    return RowTemplates({**templates, **hashed}, source.where or None)


def _require_not_literal(source: DataSource, columns: Columns, *templates: str) -> None:
    """BadInput where a template without braces is the name of one of a row's columns."""
    for template in (*templates, *([] if source.hash_of is None else [source.hash_of])):
        if "{{" not in template and (name := template.strip(" {}")) in columns:
            raise BadInput(
                f"the template {template!r} is literal text, the same in every row; to take the column of "
                f"that name, write '{{{{ {name} }}}}'"
            )


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
        """Leave a row out where the source says so and its fault is its own, else raise that."""
        if source.on_bad_row == "fail" or isinstance(fault, Unbounded):
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
    make: Callable[[Located, Texts], T],
    counts: Counts | None = None,
    templates: Texts = MappingProxyType({}),
) -> Iterator[T]:
    """Apply `make` to each row for which the source's `where` holds, and to its rendered templates.

    A row that cannot be read, or for which `where`, a template or `make` raises BadInput, is bad: with
    `on_bad_row: skip` it is left out and counted, else its error is raised. A template that takes too long
    ends it.
    """
    counts, texts_of = counts or Counts(), _templates(source, templates)
    names, _ = files_of(source, files)
    for name in names:
        shown = source.source if len(files) == 1 else _named_in(source.source, name)
        skip = partial(counts.skip, name) if source.on_bad_row == "skip" else None
        rows = (
            (Located(f"{shown}, row {number}", name, number, columns), columns)
            for number, columns in _named(shown, files[name], source, read, skip)
        )
        for found, texts in texts_of.over(rows):
            if texts is None:
                counts.by_where += 1
                continue
            try:
                made = _made(found, texts, make)
            except BadInput as fault:
                counts.take(source, name, found.number, fault)
                continue
            yield made


def _made(found: Located, texts: Texts | BadInput, make: Callable[[Located, Texts], T]) -> T:
    """What is made of a row; BadInput that names its place."""
    if isinstance(texts, BadInput):
        raise type(texts)(f"{found.place}: {texts}") from texts
    return _at(found.place, partial(make, found), texts)


def _named_in(address: str, name: str) -> str:
    """A file of a source with its folder, of a pattern the last one before it."""
    folders = takewhile(lambda part: not is_pattern(part), address.rstrip("/").split("/"))
    return "/".join([*folders, name])


def _named(
    name: str, path: Path, source: DataSource, read: Reader, skip: Skip | None
) -> Iterator[tuple[int, Columns]]:
    """Rows of a file whose faults name the file as the config does, not where it was brought to."""

    def renamed(fault: BadInput) -> BadInput:
        return BadInput(str(fault).replace(str(path), name))

    try:
        renaming = None if skip is None else lambda one, fault: skip(one, renamed(fault))
        yield from read(path, source.format, renaming, source.max_part)
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


def _at(place: str, call: Callable[[Any], T], given: Any) -> T:
    try:
        return call(given)
    except Unbounded as error:
        raise Unbounded(f"{place}: {error}") from error
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{place}: expected plain columns, found {error}") from error


def _rank(seed: int, text: str) -> str:
    return sha256_hex(f"{seed}\n{text}".encode("utf-8", "surrogatepass"))
