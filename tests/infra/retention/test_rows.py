"""A row is found again through escapes, line breaks and shortening, and other rows are not."""

from __future__ import annotations

import json

import pytest

from resprout.infra.retention.rows import holds, is_text, signs

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
FILE = ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())


def test_a_row_by_its_id_is_known_by_what_is_its_alone():
    assert signs([FILE], "a1") == {"a1", "Who is <Jane> & her family?", "Nobody knows that."}


def test_a_row_by_a_text_in_it():
    assert signs([FILE], "capital of Peru") == {
        "capital of Peru",
        "What is the capital of Peru?",
        "Lima, of course.",
    }


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
    assert holds(path, text.encode(), signs([FILE], "a1"))
    assert not holds(path, text.encode(), signs([FILE], "b2"))


def test_the_beginning_of_a_long_text_will_do():
    long = "word " * 60
    file = ("rows.jsonl", (json.dumps({"id": "c3", "text": long}) + "\n").encode())
    assert holds("report.md", f"{long[:117]}...".encode(), signs([file], "c3"))


def test_weights_are_not_searched():
    assert not is_text("model.safetensors")
    assert is_text("a/b.JSONL")
