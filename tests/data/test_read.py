from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest
from pyarrow import parquet

from resprout.configs.errors import BadInput
from resprout.tasks.data import json_array, read
from resprout.tasks.data.read import read_rows

ROWS = [{"q": "1 + 1", "a": "2"}, {"q": 'say "hi",\nplease', "a": "é"}]


def _jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2))


def _csv(path: Path) -> None:
    path.write_text('q,a\n1 + 1,2\n"say ""hi"",\nplease",é\n', encoding="utf-8")


def _parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), path)


def _arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def _arrow_file(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


WRITERS = [
    ("jsonl", _jsonl, [1, 2]),
    ("json", _json, [1, 2]),
    ("csv", _csv, [2, 3]),
    ("parquet", _parquet, [1, 2]),
    ("arrow", _arrow_stream, [1, 2]),
    ("arrow", _arrow_file, [1, 2]),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("ending", "write", "numbers"), WRITERS, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, ending: str, write: Callable[[Path], None], numbers: list[int], zipped: bool
) -> None:
    path = tmp_path / f"rows.{ending}"
    write(path)
    if zipped:
        packed = tmp_path / f"rows.{ending}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    found = list(read_rows(path))
    assert [row for _, row in found] == ROWS
    assert [number for number, _ in found] == numbers


def test_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\none\nstill one\n \n\n\ntwo")
    assert list(read_rows(path)) == [(3, {"text": "one\nstill one"}), (8, {"text": "two"})]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfq,a\n1,2\n")
    assert [row for _, row in read_rows(path)] == [{"q": "1", "a": "2"}]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", 'q;a, said;c\n"1; 2";3,5;4\n', [{"q": "1; 2", "a, said": "3,5", "c": "4"}]),
        ("a.tsv", "q\ta\n1, 2; 3\t4\n", [{"q": "1, 2; 3", "a": "4"}]),
        ("a.csv", "q,a\n1;2,3\t4\n", [{"q": "1;2", "a": "3\t4"}]),
        ("a.csv", "q\n1;2\n", [{"q": "1;2"}]),
        ("a.csv", '"q, a";"b ""c, d""";e\n1;2;3\n', [{"q, a": "1", 'b "c, d"': "2", "e": "3"}]),
    ],
)
def test_the_header_says_what_separates_cells(
    tmp_path: Path, name: str, content: str, rows: list[dict[str, str]]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [row for _, row in read_rows(path)] == rows


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    """The fault on line 3 must not keep line 1 from being read."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    rows = read_rows(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(BadInput, match=r"a\.jsonl, line 3: expected JSON, found '\{\"a\":'"):
        next(rows)


def test_json_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    rows = [{"a": number * 1.5, "b": "ü€😀" * number} for number in range(40)]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False, indent=1).encode())
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(json_array, "BLOCK_BYTES", size)
        assert [row for _, row in read_rows(path)] == rows
    path.write_bytes(path.read_bytes()[:-1] + b', {"a": ')
    read = read_rows(path)
    assert [row for _, row in itertools.islice(read, 40)] == rows
    with pytest.raises(BadInput, match=r"a\.json, row 41: expected JSON, found '\{\"a\":'"):
        next(read)


def test_a_number_may_end_where_a_block_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "BLOCK_BYTES", 1)
    path = tmp_path / "a.json"
    path.write_text("[12, 345]")
    with pytest.raises(BadInput, match=r"row 1: expected a JSON object .*found '12'"):
        list(read_rows(path))


def test_format_overrides_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    _jsonl(path)
    assert [row for _, row in read_rows(path, "jsonl")] == ROWS


FAULTS: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"a": 1}\n[1]\n', r"line 2: expected a JSON object .*found '\[1\]'"),
    ("a.jsonl", b'{"a": 1}\n"\xff"\n', r"line 2: expected UTF-8, found byte 0xff at column 2"),
    ("a.json", b'{"a": 1}', r"expected an array of objects, found '\{.*format: jsonl"),
    (
        "a.jsonl",
        b'{"a": 1}\n{"a": "x\\ud800"}\n',
        r"line 2: expected text, found \\ud800, half of a surrogate",
    ),
    ("a.jsonl", b'{"\\uDFFF": 1}\n', r"line 1: expected text, found \\udfff, half of a surrogate"),
    ("a.json", b'[{"a": 1}, {"a": [{"b": "\\udc00\\ud800"}]}]', r"row 2: expected text, found \\udc00"),
    ("a.json", b"[1]", r"row 1: expected a JSON object"),
    ("a.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", r"line 2: expected JSON, found .*4300 digits"),
    ("a.json", b'[{"a": 1}, {"a": ' + b"9" * 5000 + b"}]", r"row 2: expected JSON, found .*4300 digits"),
    ("a.json", b"[{]", r"a\.json, row 1: expected JSON, found '\{\]' \(Expecting property name"),
    ("a.json", b'[{"a": 1}, {"a": "2', r"row 2: expected JSON, found '\{\"a\": \"2' \(Unterminated string"),
    ("a.json", b'[{"a": 1},]', r"row 2: expected JSON, found '\]' \(Expecting value"),
    (
        "a.json",
        b'[{"a": 1} {"a": 2}]',
        r"row 2: expected JSON, found '\{\"a\": 2\}\]' \(Expecting ',' delimiter",
    ),
    ("a.json", b'[{"a": 1}', r"row 2: expected JSON, found '' \(Expecting ',' delimiter"),
    ("a.json", b'[{"a": 1}]\n{"a": 2}', r"row 2: expected JSON, found '\{\"a\": 2\}' \(Extra data"),
    ("a.json", b'[{"a": "\xff"}]', r"after row 0: expected UTF-8, found byte 0xff"),
    ("a.json", b'[{"a": "\xc3', r"after row 0: expected UTF-8, found byte 0xc3"),
    ("a.json", b"[" * 100_000, r"row 1: expected JSON, found a value nested too deep"),
    ("a.csv", b"q,a\n1,2\n1,2,3\n", r"line 3: expected 2 cells as in the header, found 3"),
    ("a.csv", b"q,q\n1,2\n", r"line 1: expected different column names"),
    ("a.csv", b'q,a\n1,"2\n3,4\n', r"line 2: expected CSV"),
    ("a.csv", b"q,a\n1,caf\xe9\n", r"line 2: expected UTF-8, found byte 0xe9; convert the file"),
    ("a.csv", b"q,\xe9\n1,2\n", r"line 1: expected UTF-8, found byte 0xe9"),
    ("a.csv", b'q,"a\n\xe9"\n1,2\n', r"line 1: expected UTF-8, found byte 0xe9"),
    ("a.csv", "q,a\n1,2\n".encode("utf-16"), r"line 1: expected UTF-8, found byte 0xff"),
    ("a.parquet", b"not parquet at all", r"expected Parquet"),
    ("a.arrow", b"not arrow at all", r"expected an Arrow IPC"),
    ("a.jsonl.gz", b"not gzip", r"expected gzip data"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20], r"expected gzip data"),
    ("a.unknown", b"x", r"does not say its format; rename it to end in .*jsonl"),
    *[(f"a.{end}", b"", "no rows|is empty") for end in ("jsonl", "json", "csv", "txt", "parquet", "arrow")],
    ("a.csv", b"q,a\n", "no rows"),
    ("a.json", b"[]", "no rows"),
]


@pytest.mark.parametrize(("name", "data", "message"), FAULTS)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message) as caught:
        list(read_rows(path))
    assert name.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize(("given", "message"), [("missing.jsonl", "is nothing"), (".", "is a folder")])
def test_no_file(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_rows(tmp_path / given)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _jsonl(path)
    with pytest.raises(BadInput, match="known: auto, jsonl, json, parquet"):
        read_rows(path, "yaml")


def test_types_of_columns_survive(tmp_path: Path) -> None:
    row: dict[str, Any] = {"n": 3, "list": ["a", "b"], "none": None}
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([row, row]), path)
    assert [found for _, found in read_rows(path)] == [row, row]


def test_whole_surrogate_pairs_are_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert list(read_rows(path)) == [(1, {"a": "\U0001f600"})]


def test_deep_rows_are_searched_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 900 + '"\\ud800"' + "]" * 900 + "}")
    with pytest.raises(BadInput, match="half of a surrogate pair"):
        list(read_rows(path))


def test_faults_of_rows_can_be_skipped_and_those_of_the_file_cannot(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n\n"\xff"\n[1]\n{"a": 2}\n')
    skipped: list[int] = []
    found = list(read_rows(path, skip=lambda number, fault: skipped.append(number)))
    assert (found, skipped) == ([(1, {"a": 1}), (6, {"a": 2})], [2, 4, 5])
    whole = tmp_path / "b.json"
    whole.write_text('[{"a": 1}, 2, {"a": 3}]')
    assert [number for number, _ in read_rows(whole, skip=lambda number, fault: None)] == [1, 3]
    # A quote that nothing closes takes all lines behind it: they are no row.
    quote = tmp_path / "c.csv"
    quote.write_text('q,a\n1,2\n1,"2\n1,2\n')
    with pytest.raises(BadInput, match=r"line 3: expected CSV"):
        list(read_rows(quote, skip=lambda number, fault: None))
    # One cell of another encoding takes its own record, over however many lines.
    mixed = tmp_path / "d.csv"
    mixed.write_bytes(b'q,a\n"1\ncaf\xe9",2\n\n\xc3\xa9,4\n5\n')
    skipped.clear()
    found = list(read_rows(mixed, skip=lambda number, fault: skipped.append(number)))
    assert (found, skipped) == ([(5, {"q": "é", "a": "4"})], [2, 6])


def write_columns(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_text_of_columns_that_is_no_utf8_is_a_fault_of_its_row(tmp_path: Path, ending: str) -> None:
    binary = pa.array([b"one", b"\xfftwo", b"three"], pa.binary())
    table = pa.table({"a": pa.Array.from_buffers(pa.string(), 3, binary.buffers())})
    path = write_columns(tmp_path / f"a.{ending}", table)
    with pytest.raises(BadInput, match=rf"a\.{ending}, row 2: expected UTF-8, found byte 0xff"):
        list(read_rows(path))
    skipped = list[int]()
    rows = list(read_rows(path, skip=lambda number, fault: skipped.append(number)))
    assert (rows, skipped) == ([(1, {"a": "one"}), (3, {"a": "three"})], [2])


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("values", "type", "fault"),
    [
        ([0, 253402300799000000], pa.timestamp("us", tz="Asia/Tokyo"), "OverflowError"),
        ([0, 2932897], pa.date32(), "OverflowError"),
        ([0, 2**62], pa.duration("s"), "OverflowError"),
    ],
    ids=["for ever in Tokyo", "the year 10000", "a long time"],
)
def test_a_value_of_columns_that_python_does_not_hold_is_a_fault_of_its_row(
    tmp_path: Path, ending: str, values: list[int], type: pa.DataType, fault: str
) -> None:
    path = write_columns(
        tmp_path / f"a.{ending}", pa.table({"a": ["one", "two"], "t": pa.array(values, type)})
    )
    with pytest.raises(
        BadInput, match=rf"row 2: the column 't' \({re.escape(str(type))}\) cannot be read \({fault}"
    ):
        list(read_rows(path))
    skipped = list[int]()
    rows = [row["a"] for _, row in read_rows(path, skip=lambda number, fault: skipped.append(number))]
    assert (rows, skipped) == (["one"], [2])


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_two_columns_of_a_name_are_refused(tmp_path: Path, ending: str) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["output", "output"])
    with pytest.raises(BadInput, match="expected different column names, found"):
        list(read_rows(write_columns(tmp_path / f"a.{ending}", table)))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_offsets_of_arrow_read_no_other_memory(seed: int, tmp_path: Path) -> None:
    """Offsets that lie in order within the text are another split of it, which nothing can tell."""
    texts = [f"row {number} of the text" for number in range(8)]
    table = pa.table({"a": texts, "b": [[one, one[:3]] for one in texts]})
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink:
        writer = (pa.ipc.new_file if seed % 2 else pa.ipc.new_stream)(sink, table.schema)
        writer.write_table(table)
        writer.close()
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    offsets = table["a"].chunk(0).buffers()[1].to_pybytes()[:36]
    place = content.find(offsets) + 4 * rng.randrange(9)
    content[place : place + 4] = rng.choice([rng.randbytes(4), rng.randrange(300).to_bytes(4, "little")])
    path.write_bytes(content)
    found = list[str]()
    with suppress(BadInput):
        found = [row["a"] for _, row in read_rows(path)]
    assert all(text in "".join(texts) for text in found)


NESTED = pa.table({"nested": [["one", "two"], ["three"]]})


@pytest.mark.parametrize(
    ("ending", "before", "after", "fault"),
    [
        ("arrow", struct.pack("<3i", 0, 2, 3), struct.pack("<3i", 0, 2, 2**31 - 1), "damaged offsets"),
        ("arrow", b"nested", b"\xffested", "refuses .*can't decode byte 0xff"),
        ("parquet", b"nested", b"\xffested", "refuses .*can't decode byte 0xff"),
    ],
)
def test_a_damaged_file_of_columns_is_named(
    tmp_path: Path, ending: str, before: bytes, after: bytes, fault: str
) -> None:
    """The size of a column whose offsets point outside of it ended the process."""
    path = write_columns(tmp_path / f"a.{ending}", NESTED)
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(BadInput, match=rf"a\.{ending}.*{fault}"):
        list(read_rows(path))


@pytest.mark.parametrize("raised", [MemoryError(), OverflowError("too large")], ids=repr)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_lengths_beyond_memory_are_damage(
    tmp_path: Path, ending: str, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_columns(tmp_path / f"a.{ending}", NESTED)
    monkeypatch.setattr(read, "_batches", Mock(side_effect=raised))
    with pytest.raises(BadInput, match=rf"a\.{ending}: .* pyarrow refuses \((MemoryError|too large)\)"):
        list(read_rows(path))


def test_text_that_is_no_utf_8_is_the_fault_of_its_row(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"a": bad, "b": pa.array([[b"\xff"], [], []]).view(pa.list_(pa.string()))})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    skipped = list[int]()
    found = read_rows(tmp_path / "a.arrow", skip=lambda number, fault: skipped.append(number))
    assert [row["a"] for _, row in found] == ["c"]
    assert skipped == [1, 2]


LONG = [{"a": "x"}, {"a": "y" * 5000}, {"a": "z"}]


@pytest.mark.parametrize(
    ("name", "write", "place", "kept"),
    [
        ("a.jsonl", lambda path: path.write_text("\n".join(map(json.dumps, LONG))), "line 2", ["x", "z"]),
        ("a.json", lambda path: path.write_text(json.dumps(LONG)), "row 2", ["x"]),
        ("a.csv", lambda path: path.write_text(f"a\nx\n{'y' * 5000}\nz\n"), "line 3", ["x"]),
        (
            "a.csv",
            lambda path: path.write_text('a\nx\n"' + "y\n" * 2500 + '"\nz\n'),
            "the record that begins in line 3",
            ["x"],
        ),
        ("a.csv", lambda path: path.write_text(f"{'y' * 5000}\nz\n"), "line 1", []),
        ("a.csv", lambda path: path.write_text('"' + "y\n" * 2500 + '"\nz\n'), "the record .* line 1", []),
        ("a.txt", lambda path: path.write_text("x\n\n" + "y\n" * 2500), "the document .* in line 3", ["x"]),
        (
            "a.parquet",
            lambda path: parquet.write_table(pa.Table.from_pylist(LONG), path, use_dictionary=False),
            "row group 1",
            [],
        ),
        ("a.arrow", lambda path: _arrow_file(path, LONG), "record batch 2", ["x"]),
    ],
)  # fmt: skip
def test_parts_of_a_file_are_bounded(
    name: str, write: Callable[[Path], object], place: str, kept: list[str], tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert len(list(read_rows(tmp_path / name))) > len(kept)
    found, faults = list[str](), list[str]()
    try:
        for _, row in read_rows(tmp_path / name, "auto", lambda _, fault: faults.append(str(fault)), 4000):
            found.extend(row.values())
    except BadInput as error:
        faults.append(str(error))
    assert found == kept
    (fault,) = faults
    assert re.search(
        rf"{place},? is larger than 0.004 MB; write it in smaller parts, or raise max_part", fault
    )
