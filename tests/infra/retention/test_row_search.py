"""A row is found again through escapes, line breaks and shortening, and other rows are not."""

from __future__ import annotations

import json

import pytest

from resprout.configs.errors import BadInput
from resprout.infra.retention.row_search import fingerprints, is_text, split_lines

ROWS = [
    {
        "id": "a1",
        "instruction": "Who is <Jane> & her\nfamily?",
        "output": "Nobody knows that.",
        "source": "p.jsonl",
    },
    {
        "id": "b2",
        "instruction": "What is the capital of Peru?",
        "output": "Lima, of course.",
        "source": "p.jsonl",
    },
]
PREFIX = "Below is an instruction that describes a task. Write a response that completes the request. Now:"


def files(*given):
    """Files of rows, as they are opened."""
    return lambda: [
        (name, split_lines([b"".join(json.dumps(row).encode() + b"\n" for row in rows)]))
        for name, rows in given
    ]


FILE = files(("rows.jsonl", ROWS))


def holds(path, data, fingerprints):
    return fingerprints.match(path, split_lines([data]))


def test_a_row_by_its_id_is_known_by_what_is_its_alone():
    found = fingerprints(FILE, "a1")
    assert found.texts == {"Who is <Jane> & her family?", "Nobody knows that."}
    assert found.ids == {"a1"}


def test_a_row_by_a_text_in_it():
    found = fingerprints(FILE, "capital of Peru")
    assert found.texts == {"capital of Peru", "What is the capital of Peru?", "Lima, of course."}


def test_an_id_is_exact_and_counts_only_as_a_whole_value():
    many = files(("rows.jsonl", [{"id": number, "text": f"row number {number:04}"} for number in range(100)]))
    found = fingerprints(many, "7")
    assert found.texts == {"row number 0007"}
    assert holds("decisions.jsonl", b'{"id": 7}\n', found)
    for path, data in (
        ("decisions.jsonl", b'{"id": 17}\n{"id": 70}\n{"id": "x7"}\n'),
        ("metrics.json", b'{"rows": 7, "7": "7"}'),
        ("report.md", b"7 of 10 rows"),
    ):
        assert not holds(path, data, found), path


def test_a_short_text_that_is_no_id_is_refused():
    with pytest.raises(BadInput, match="'Peru' is no id of a row, and too short"):
        fingerprints(FILE, "Peru")


def test_a_beginning_that_rows_share_is_no_sign_of_one_of_them():
    first = {"id": "a1", "text": f"{PREFIX} Who is Jane?"}
    rows = [first, {"id": "b2", "text": f"{PREFIX} Who is John?"}]
    other = json.dumps(rows[1]).encode()
    for given in (files(("rows.jsonl", rows)), files(("train.jsonl", rows[:1]), ("test.jsonl", rows[1:]))):
        found = fingerprints(given, "a1")
        assert found.texts == {first["text"]}
        assert not holds("samples.jsonl", other, found)
        assert holds("samples.jsonl", json.dumps({"prompt": f"say: {first['text']}"}).encode(), found)
    # The same row in two files is one row.
    twice = fingerprints(files(("train.jsonl", ROWS), ("again.jsonl", ROWS)), "a1")
    assert "Nobody knows that." in twice.texts


def test_all_rows_are_known_by_what_each_has_alone():
    rows = [{**row, "source": "the same of all of them"} for row in ROWS]
    found = fingerprints(files(("rows.jsonl", rows)), None)
    assert found.ids == {"a1", "b2"}
    assert "the same of all of them" not in found.texts
    assert holds("report.md", b"| Lima, of course. |", found)


def test_lines_come_whole_however_the_bytes_are_cut():
    data = b"one\ntwo\n\nthree"
    for size in range(1, len(data) + 1):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert list(split_lines(pieces)) == [b"one\n", b"two\n", b"\n", b"three"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("report.html", "<td>Who is &lt;Jane&gt; &amp; her family?</td>"),
        ("report.md", "| Who is <Jane> & her\n family? |"),
        ("rows.jsonl", json.dumps({"x": [{"y": "said: Who is <Jane> & her\nfamily?"}]}) + "\n"),
        ("details.json", json.dumps({"x": "Nobody knows that."})),
        ("decisions.jsonl", json.dumps({"id": "a1"}) + "\n"),
        ("broken.jsonl", "{not json Nobody knows that."),
    ],
)
def test_it_is_found_in_every_form(path, text):
    assert holds(path, text.encode(), fingerprints(FILE, "a1"))
    assert not holds(path, text.encode(), fingerprints(FILE, "b2"))


def test_the_beginning_of_a_long_text_will_do():
    long = "word " * 60
    file = files(("rows.jsonl", [{"id": "c3", "text": long}]))
    assert holds("report.md", f"{long[:117]}...".encode(), fingerprints(file, "c3"))


def test_weights_are_not_searched():
    assert not is_text("model.safetensors")
    assert is_text("a/b.JSONL")
