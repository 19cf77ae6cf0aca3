"""Reading rows of any supported file format; what cannot be read is named by file and line."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from resprout.configs.errors import BadInput
from resprout.tasks.data.grammar import grammar_rows
from resprout.tasks.data.json_array import NoArray, TooLarge, array_elements

Row: TypeAlias = dict[str, Any]
Numbered: TypeAlias = Iterator[tuple[int, Row]]
Skip: TypeAlias = Callable[[int, BadInput], None]
"""Takes the number and the fault of a row that cannot be read."""
_Read: TypeAlias = Iterator[tuple[int, Row | BadInput]]

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED = re.compile('"[^"]*"?')
DAMAGED_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a truncated or corrupt gzip file raises."""
_DAMAGED = (OSError, UnicodeDecodeError, MemoryError, OverflowError)
"""Exceptions of pyarrow besides its own on a damaged file: names that are no UTF-8, lengths beyond memory."""
PIECE_ROWS = 1000
JOIN = "\n\n"
"""Between documents of running text, as in the usual perplexity protocol."""

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".arrow": "arrow",
}
_ALSO = {"jsonl": (".json",), "grammar": (".yaml", ".yml")}
"""Endings that files of a format often have, though alone they do not say it."""


def read_rows(
    path: Path, format: str = "auto", skip: Skip | None = None, max_part: int = sys.maxsize - 1
) -> Numbered:
    """The rows of a file, each with the 1-based line where it begins (JSONL, CSV, text) or its row number.

    Args:
        path: The file; `.gz` is unpacked on the way.
        format: jsonl, json (array of objects), parquet, csv (commas, semicolons or tabs, whichever the header
            has most of), text (documents between blank lines, each a row {"text"}), arrow (IPC stream or
            file), grammar (YAML, see `grammar.py`); auto goes by the name's ending, which never says grammar.
        skip: Called where one row is at fault and the next can be read: a line that is no JSON or no UTF-8, a
            record of CSV that is no UTF-8 or has more or fewer cells than the header.
        max_part: Bytes of a line, an element of a JSON array, a row group or a record batch at most.

    Raises:
        BadInput: no such file, an ending that says nothing, a file without rows, or a row that is not what
            the format asks for and that nobody skips; a fault inside the file is raised when the iterator
            gets there.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise BadInput(f"{path} is {what}, expected a data file; give the path of one")
    return _rows(path, _READERS[format_of(path) if format == "auto" else _known(format)], skip, max_part)


def format_of(path: Path) -> str:
    """The format that a name's ending (before `.gz`) stands for; BadInput where it stands for none."""
    if (ending := ending_of(path)) in _ENDINGS:
        return _ENDINGS[ending]
    raise BadInput(
        f"{path.name} does not say its format; rename it to end in {', '.join(_ENDINGS)} (.gz allowed) "
        f"or set format: {', '.join(_READERS)}"
    )


def may_hold(path: Path, format: str) -> bool:
    """Whether a file may by its name's ending be of a format; auto: of any."""
    ending = ending_of(path)
    if format == "auto":
        return ending in _ENDINGS
    return _ENDINGS.get(ending) == format or ending in _ALSO.get(format, ())


def ending_of(path: Path) -> str:
    """The ending of a file's name, before `.gz`, in small letters; empty where it has none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _known(format: str) -> str:
    if format not in _READERS:
        raise BadInput(f"format is '{format}'; known: auto, {', '.join(_READERS)}")
    return format


def _rows(
    path: Path, reader: Callable[[Path, IO[bytes], int], _Read], skip: Skip | None, max_part: int
) -> Numbered:
    number = 0
    with open_unpacked(path) as file:
        try:
            for number, row in reader(path, file, max_part):
                if not isinstance(row, BadInput):
                    yield number, row
                elif skip is None:
                    raise row
                else:
                    skip(number, row)
        except DAMAGED_GZIP as error:
            raise BadInput(
                f"{path}, after row {number}: expected gzip data, found a damaged or unfinished file "
                f"({error}); fetch it again"
            ) from error
    if number == 0:
        raise BadInput(f"{path} holds no rows; expected at least one")


def open_unpacked(path: Path) -> IO[bytes]:
    """A file's bytes; `.gz` is unpacked on the way."""
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def too_large(place: str, max_part: int) -> BadInput:
    """The fault of a part of a file that is not read because of its size."""
    return BadInput(
        f"{place} is larger than {max_part / 1e6:g} MB; write it in smaller parts, or raise max_part of the "
        "source"
    )


def _raw_lines(path: Path, file: IO[bytes], max_part: int) -> Iterator[tuple[int, bytes | BadInput]]:
    number = 0
    while raw := file.readline(max_part + 1):
        number += 1
        if len(raw) <= max_part:
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(max_part + 1)
        yield number, too_large(f"{path}, line {number}", max_part)


def _lines(path: Path, file: IO[bytes], max_part: int) -> Iterator[tuple[int, str]]:
    for number, raw in _raw_lines(path, file, max_part):
        if isinstance(raw, BadInput):
            raise raw
        yield number, _decoded(path, number, raw)


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        found = raw[error.start : error.start + 1].hex()
        raise BadInput(
            f"{path}, line {number}: expected UTF-8, found byte 0x{found} at column {error.start + 1}; "
            "convert the file"
        ) from error


def _parsed(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise BadInput(f"{path}, {place}: expected JSON, found {_short(text)} ({error})") from error


def _half_pair(value: Any) -> str | None:
    """Half of a surrogate pair in any string of a JSON value: JSON can write one, UTF-8 cannot."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo += [*part, *part.values()]
        elif isinstance(part, list):
            todo += part
        elif isinstance(part, str) and not part.isascii() and (found := _SURROGATE.search(part)):
            return found[0]
    return None


def _object(path: Path, place: str, value: Any) -> Row | BadInput:
    if not isinstance(value, dict):
        found = _short(json.dumps(value))
        return BadInput(f"{path}, {place}: expected a JSON object with the row's columns, found {found}")
    if half := _half_pair(value):
        return BadInput(
            f"{path}, {place}: expected text, found \\u{ord(half):04x}, half of a surrogate pair; write the "
            "whole character, or leave it out"
        )
    return value


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _jsonl(path: Path, file: IO[bytes], max_part: int) -> _Read:
    for number, raw in _raw_lines(path, file, max_part):
        place = f"line {number}"
        found: Row | BadInput | None = None
        try:
            if isinstance(raw, BadInput):
                found = raw
            elif (line := _decoded(path, number, raw)).strip():
                found = _object(path, place, _parsed(path, place, line))
        except BadInput as fault:
            found = fault
        if found is not None:
            yield number, found


def _json(path: Path, file: IO[bytes], max_part: int) -> _Read:
    number = 0
    try:
        for number, value in enumerate(array_elements(file, max_part), 1):
            yield number, _object(path, f"row {number}", value)
    except NoArray as error:
        raise BadInput(
            f"{path}: expected an array of objects, found {_short(str(error))}; "
            "one object a line is format: jsonl"
        ) from error
    except TooLarge as error:
        raise too_large(f"{path}, row {number + 1}", max_part) from error
    except json.JSONDecodeError as error:
        what = f"found {_short(error.doc)} ({error.msg})"
        raise BadInput(f"{path}, row {number + 1}: expected JSON, {what}") from error
    except RecursionError as error:
        raise BadInput(f"{path}, row {number + 1}: expected JSON, found a value nested too deep") from error
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start : error.start + 1].hex()}"
        raise BadInput(
            f"{path}, after row {number}: expected UTF-8, found {found}; convert the file"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path}, row {number + 1}: expected JSON, found {error}") from error


def _csv(path: Path, file: IO[bytes], max_part: int) -> _Read:
    csv.field_size_limit(min(int(max_part), 2**31 - 1))  # the default of 128 KiB is less than a long document
    lines, number, size = _raw_lines(path, file, max_part), 1, 0

    def taken() -> Iterator[bytes]:
        nonlocal size
        for _, line in lines:
            if isinstance(line, BadInput):
                raise line
            size += len(line)  # of the record that began in line `number`
            if size > max_part:
                raise too_large(f"{path}, the record that begins in line {number},", max_part)
            yield line

    raw = taken()
    if (header_line := next(raw, None)) is None:
        return
    first = _decoded(path, 1, header_line)
    # Bytes that are no UTF-8 stand as halves of surrogate pairs, which valid UTF-8 cannot hold.
    rest = (line.decode("utf-8", "surrogateescape") for line in raw)

    # Spreadsheets write semicolons in languages with a decimal comma. Of equals `max` gives the first.
    separator = max(",;\t", key=_QUOTED.sub("", first).count)
    reader = csv.reader(chain([first], rest), delimiter=separator, strict=True)
    try:
        header = next(reader)
        if isinstance(fault := _record(path, 1, header, header), BadInput):
            raise fault
        if len(set(header)) != len(header):
            raise BadInput(f"{path}, line 1: expected different column names, found {header}")
        number, size = reader.line_num + 1, 0
        for cells in reader:
            if cells:
                yield number, _record(path, number, header, cells)
            number, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise BadInput(f"{path}, line {number}: expected CSV, found a fault: {error}") from error


def _record(path: Path, number: int, header: list[str], cells: list[str]) -> Row | BadInput:
    place = f"{path}, line {number}"
    if len(cells) != len(header):
        return BadInput(f"{place}: expected {len(header)} cells as in the header, found {len(cells)}")
    if half := _half_pair(cells):
        return BadInput(f"{place}: expected UTF-8, found byte 0x{ord(half) - 0xDC00:02x}; convert the file")
    return dict(zip(header, cells, strict=True))


def _text(path: Path, file: IO[bytes], max_part: int) -> _Read:
    start, kept, size = 0, list[str](), 0
    for number, line in _lines(path, file, max_part):
        if line.strip():
            start, size = start or number, len(line) + (size if kept else 0)
            if size > max_part:
                raise too_large(f"{path}, the document that begins in line {start},", max_part)
            kept.append(line)
        elif kept:
            yield start, {"text": "".join(kept).rstrip("\r\n")}
            start, kept = 0, []
    if kept:
        yield start, {"text": "".join(kept).rstrip("\r\n")}


def _parquet(path: Path, file: IO[bytes], max_part: int) -> _Read:
    import pyarrow
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(_seekable(path, file))
        about = source.metadata
        for group in range(about.num_row_groups):
            if about.row_group(group).total_byte_size > max_part:
                raise too_large(f"{path}, row group {group + 1}", max_part)
        yield from _batches(path, source.iter_batches(PIECE_ROWS), max_part)
    except (pyarrow.ArrowException, *_DAMAGED) as error:
        raise BadInput(
            f"{path}: expected Parquet, found a file that pyarrow refuses ({_why(error)})"
        ) from error


def _arrow(path: Path, file: IO[bytes], max_part: int) -> _Read:
    import pyarrow

    seekable = _seekable(path, file)
    is_file = seekable.read(6) == b"ARROW1"
    seekable.seek(0)
    try:
        if is_file:
            reader = pyarrow.ipc.open_file(seekable)
            parts = (reader.get_batch(index) for index in range(reader.num_record_batches))
            yield from _batches(path, parts, max_part)
        else:
            yield from _batches(path, pyarrow.ipc.open_stream(seekable), max_part)
    except (pyarrow.ArrowException, *_DAMAGED) as error:
        raise BadInput(
            f"{path}: expected an Arrow IPC stream or file, found one that pyarrow refuses ({_why(error)})"
        ) from error


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _seekable(path: Path, file: IO[bytes]) -> IO[bytes]:
    """Parquet and Arrow files are read from their end, which gzip only reaches by unpacking all, on disk."""
    data = file
    if path.suffix.lower() == ".gz":
        data = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as its rows are read)
        shutil.copyfileobj(file, data)
        data.seek(0)
    if not data.read(1):
        raise BadInput(f"{path} is empty; expected at least one row")
    data.seek(0)
    return data


def _batches(path: Path, batches: Any, max_part: int) -> _Read:
    number = 0
    for index, batch in enumerate(batches, 1):
        _require_whole(f"{path}, record batch {index}", batch, max_part)
        names = batch.schema.names
        if len(set(names)) != len(names):
            raise BadInput(f"{path}: expected different column names, found {names}")
        # In pieces, so that who wants the first rows need not wait for a million.
        for start in range(0, batch.num_rows, PIECE_ROWS):
            for row in _columns(path, batch.slice(start, PIECE_ROWS), number):
                number += 1
                yield number, row


def _require_whole(place: str, batch: Any, max_part: int) -> None:
    """BadInput where offsets or lengths point outside a batch's own memory; text that is no UTF-8 may stand.

    pyarrow trusts those of a file: following a damaged one reads other memory as text, or ends the process.
    """
    import pyarrow

    # Not `nbytes`, which follows the offsets.
    if batch.get_total_buffer_size() > max_part:
        raise too_large(place, max_part)
    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.view(_as_bytes(column.type)).validate(full=True)
            except (pyarrow.ArrowException, NotImplementedError) as error:
                raise BadInput(
                    f"{place}: expected a whole column '{name}', found damaged offsets or lengths ({error}); "
                    "write or fetch the file again"
                ) from error


def _as_bytes(type_: Any) -> Any:
    """The type of the same layout in which text is bytes, which need no encoding."""
    import pyarrow

    plain = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    if pyarrow.types.is_list(type_):
        return pyarrow.list_(type_.value_field.with_type(_as_bytes(type_.value_type)))
    if pyarrow.types.is_struct(type_):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in type_])
    return plain.get(type_, type_)


def _columns(path: Path, piece: Any, before: int) -> Iterator[Row | BadInput]:
    """The rows of a piece, `before` of the file's stand before it."""
    try:
        yield from piece.to_pylist()
        return
    except (ValueError, ArithmeticError, LookupError):
        # Invalid UTF-8, or a value outside Python's range, as a date beyond the year 9999.
        pass
    for place in range(piece.num_rows):
        alone = piece.slice(place, 1)
        try:
            (row,) = alone.to_pylist()
        except (ValueError, ArithmeticError, LookupError) as error:
            row = BadInput(f"{path}, row {before + place + 1}: {_unreadable(alone, error)}")
        yield row


def _unreadable(row: Any, error: Exception) -> str:
    """The fault of a row whose values pyarrow cannot convert to Python, naming the first such column."""
    if isinstance(error, UnicodeDecodeError):
        return f"expected UTF-8, found byte 0x{error.object[error.start]:02x}"
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except (ValueError, ArithmeticError, LookupError) as fault:
            return (
                f"the column '{name}' ({column.type}) cannot be read ({type(fault).__name__}: {fault}); "
                "leave it out of the file, or cast it to text"
            )
    return str(error)


_READERS: dict[str, Callable[[Path, IO[bytes], int], _Read]] = {
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "csv": _csv,
    "text": _text,
    "arrow": _arrow,
    "grammar": grammar_rows,
}
