"""Columns are found by their names and by what they hold, and the templates render every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import RowSource, TextSource
from resprout.tasks.acquire.rows import instruction_items
from resprout.tasks.data.columns import pair_text, row_columns, text_columns
from resprout.tasks.data.render import RowTemplates, compile_template

CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "w"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "later"},
]
SHARED = [{"from": "human", "value": "w"}, {"from": "gpt", "value": "a"}]
ASKED = [{"role": "user", "content": "w"}]
REPLY = [{"role": "assistant", "content": "a"}]
OTHER = [{"role": "assistant", "content": "worse"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "w"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]  # fmt: skip
POOLS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "alpaca": ([{"instruction": "w", "input": "m", "output": "a"}], [("w", "m", "a")]),
    "dolly": ([{"instruction": "w", "context": None, "response": "a"}, {"instruction": "x", "context": "m",
              "response": "b"}], [("w", "", "a"), ("x", "m", "b")]),
    "prompt": ([{"prompt": "w", "completion": "a"}], [("w", "", "a")]),
    "input and output": ([{"input": "w", "output": "a"}], [("w", "", "a")]),
    "answer inside": ([{"question": "w", "answer": {"value": "a", "aliases": []}}], [("w", "", "a")]),
    "answers inside": ([{"question": "w", "context": "m", "answers": {"text": ["a", "b"], "start": [1, 2]}}],
                       [("w", "m", "a")]),
    "list of answers": ([{"query": "w", "answers": ["a", "b"]}], [("w", "", "a")]),
    "choices": ([{"question": "w", "choices": ["x", "a"], "answer": 1}], [("w", "", "a")]),
    "label as text": ([{"question": "w", "endings": ["x", "a"], "label": "1"}], [("w", "", "a")]),
    "answers as mappings": ([{"question": "w", "answers": [{"text": "a"}]}], [("w", "", "a")]),
    "an empty list first": ([{"question": "x", "answers": []}, {"question": "w", "answers": ["a"]}],
                            [("w", "", "a")]),
    "messages": ([{"messages": CHAT}], [("s\n\nw", "", "a")]),
    "messages of parts": ([{"messages": PARTS}], [("w", "", "a")]),
    "conversations": ([{"conversations": SHARED}], [("w", "", "a")]),
    "turns in both columns": ([{"prompt": [CHAT[0], *ASKED], "completion": REPLY}], [("s\n\nw", "", "a")]),
    "turns of the task": ([{"prompt": ASKED, "completion": "a"}], [("w", "", "a")]),
    "turns of the answer": ([{"prompt": "w", "completion": REPLY}], [("w", "", "a")]),
    "the first answer of the task's turns": ([{"prompt": [*ASKED, *REPLY, *ASKED], "completion": OTHER}],
                                             [("w", "", "a")]),
    "preferences": ([{"prompt": ASKED, "chosen": REPLY, "rejected": OTHER}], [("w", "", "a")]),
    "preferences that repeat the task": ([{"rejected": ASKED + OTHER, "chosen": ASKED + REPLY}],
                                         [("w", "", "a")]),
    "preferences beside the task": ([{"prompt": "w", "chosen": ASKED + REPLY, "rejected": ASKED + OTHER}],
                                    [("w", "", "a")]),
    "turns in any column": ([{"id": "7", "log": ASKED + REPLY}], [("w", "", "a")]),
    "turns as material": ([{"context": REPLY, "question": "w", "answer": "b"}], [("w", "a", "b")]),
    "capitals": ([{"Question": "w", "Answer": "a"}], [("w", "", "a")]),
    "an empty answer": ([{"question": "w", "answer": "a"}, {"question": "x", "answer": None}],
                        [("w", "", "a")]),
    "no answer in a chat": ([{"messages": CHAT}, {"messages": CHAT[:2]}], [("s\n\nw", "", "a")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", POOLS)
def test_task_material_and_answer_are_found(kind: str) -> None:
    rows, expected = POOLS[kind]
    settings = row_columns(rows, "any.jsonl").settings
    source = RowSource(source="any.jsonl", on_bad_row="skip", **settings)
    items = instruction_items(
        source, "any", {"a": Path("a")}, lambda path, form, skip, most: enumerate(rows, 1)
    )
    fields = ("instruction", "input", "output")
    assert [tuple(item.row[field] for field in fields) for item in items] == expected


def test_only_what_differs_from_the_defaults_is_set() -> None:
    assert row_columns(POOLS["alpaca"][0], "any").settings == {}
    assert row_columns(POOLS["capitals"][0], "any").settings == {
        "instruction": "{{ Question }}",
        "output": "{{ Answer }}",
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "d"}], ["d"]),
        ([{"id": "long long long", "content": "d"}], ["d"]),
        ([{"id": 1, "abstract of it": "d", "note": ""}], ["d"]),
        ([{"class": "d"}], ["d"]),
        ([{"messages": CHAT}], ["s\n\nw\n\na\n\nlater"]),
        ([{"messages": PARTS}], ["w\n\na"]),
        ([{"prompt": ASKED, "completion": REPLY}], ["w\n\na"]),
        ([{"question": "w", "answer": "a"}], ["w\n\na"]),
        ([{"prompt": "w", "context": "", "output": "a"}, {"prompt": "x", "context": "m", "output": "b"}],
         ["w\n\na", "x\n\nm\n\nb"]),
    ],
)  # fmt: skip
def test_text_is_found(rows: list[dict[str, Any]], expected: list[str]) -> None:
    source = TextSource(source="any.jsonl", **text_columns(rows, "any.jsonl").settings)
    kept = [row for row in rows if source.where is None or RowTemplates({}, source.where)(row) is not None]
    assert [compile_template(source.text)(row) for row in kept] == expected


def test_a_pool_as_text_leaves_out_the_same_rows() -> None:
    rows = [*POOLS["an empty answer"][0], {"question": "y", "answer": 0}, {"question": "", "answer": "c"}]
    found = pair_text(row_columns(rows, "any")).settings
    kept = [row for row in rows if RowTemplates({}, found["where"])(row) is not None]
    assert [compile_template(found["text"])(row) for row in kept] == ["w\n\na", "y\n\n0"]
    # Without an answer the chat is a bad row already.
    assert pair_text(row_columns(POOLS["messages"][0], "any")).settings.keys() == {"text"}


def test_columns_of_other_names_are_named_in_the_config() -> None:
    with pytest.raises(
        BadInput, match=r"name yours in the config, as select: .*instruction: \"\{\{ column_of"
    ):
        row_columns([{"user_query": "w", "reply": "a"}], "rows.jsonl")


@pytest.mark.parametrize("rows", [[{"text": "d"}], [{"question": "w"}], [{"answer": "a"}],
                                  [{"question": "w", "answer": {"x": 1}}], [{"log": OTHER}], []])  # fmt: skip
def test_rows_without_a_task_and_an_answer_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(
        BadInput, match=r"rows\.jsonl has no columns for a task and its answer; its columns are"
    ):
        row_columns(rows, "rows.jsonl")


@pytest.mark.parametrize("rows", [[{"n": 1}], [{"a": "", "b": None}]])
def test_rows_without_text_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(BadInput, match=r"rows\.jsonl has no column of text; its columns are"):
        text_columns(rows, "rows.jsonl")
