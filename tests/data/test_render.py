from __future__ import annotations

import math
import re
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.data.render import compile_template, compile_where, hash_percent


def test_columns_are_variables() -> None:
    render = compile_template("Q: {{ question }}{% if hint %} ({{ hint }}){% endif %} {{ row['0'] }}")
    assert render({"question": "why?", "hint": None, "0": "x"}) == "Q: why? x"


def test_all_columns_are_reached_where_one_is_called_row() -> None:
    assert compile_template("{{ row['0'] }} {{ row['row'] }}")({"0": "x", "row": 7}) == "x 7"


def test_null_and_missing_with_default_render_as_nothing() -> None:
    render = compile_template("[{{ input | default('') }}]")
    assert render({}) == "[]"
    assert render({"input": None}) == "[]"


def test_a_missing_column_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"'answer' is undefined.*columns are: question, output"):
        compile_template("{{ answer }}")({"question": "a", "output": "b"})


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(BadInput, match="does not parse"):
        compile_template("{{ a ")


@pytest.mark.parametrize(
    "text", ["{{ ''.__class__.__mro__ }}", "{{ a.append(1) }}", "{{ 1 / (a | length - 2) }}"]
)
def test_the_sandbox_and_faults_at_run_time(text: str) -> None:
    """No way to Python's classes, no change of the row, and an error in the data is bad input."""
    row = {"a": [1, 2]}
    with pytest.raises(BadInput, match="columns are: a"):
        compile_template(text)(row)
    assert row == {"a": [1, 2]}


def test_where() -> None:
    holds = compile_where("source_id.startswith('wikihow') and n | int > 2")
    assert holds({"source_id": "wikihow~1", "n": "3"}) is True
    assert holds({"source_id": "activitynet", "n": "3"}) is False
    with pytest.raises(BadInput, match=r"'source_id' is undefined.*columns are: n"):
        holds({"n": "3"})
    with pytest.raises(BadInput, match="does not parse"):
        compile_where("a ==")


def test_where_on_a_missing_column_alone_is_an_error() -> None:
    with pytest.raises(BadInput, match="columns are: n"):
        compile_where("kept")({"n": 1})


def test_hash_percent_is_sha256_modulo_100() -> None:
    """sha256('') = e3b0...b855 and sha256('abc') = ba78...15ad, reduced mod 100 by hand (bc)."""
    empty = 0xE3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855
    abc = 0xBA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD
    assert hash_percent("") == empty % 100
    assert hash_percent("abc") == abc % 100


def test_hash_percent_is_even() -> None:
    counts = [0] * 100
    for number in range(20_000):
        counts[hash_percent(str(number))] += 1
    assert min(counts) > 130
    assert max(counts) < 270


@pytest.mark.parametrize("value", [[1], ["a"], {"role": "user"}, b"a", ({"text": "a"},)], ids=str)
def test_what_is_no_text_is_not_printed_as_python_writes_it(value: Any) -> None:
    sentence = f"'<{{{{ c }}}}>' does not work on a row: it gives a {type(value).__name__}, which is no text"
    with pytest.raises(BadInput, match=re.escape(sentence)):
        compile_template("<{{ c }}>")({"c": value})


def test_a_generator_is_no_text() -> None:
    with pytest.raises(BadInput, match="it gives a generator, which is no text"):
        compile_template("{{ c | map('upper') }}")({"c": ["a"]})


@pytest.mark.parametrize("template", ["{{ c.items }}", "{{ text.title }}", "{{ range }}", "{{ self }}"])
def test_a_name_of_python_s_or_jinja_s_is_no_text(template: str) -> None:
    with pytest.raises(BadInput, match=r"which is no text; .* in brackets, as row\['items'\]"):
        compile_template(template)({"c": {"items": "three"}, "text": "a", "self": "me"})
    assert compile_template("{{ row['c']['items'] }} {{ row['self'] }}")(
        {"c": {"items": "three"}, "self": "me"}
    ) == "three me"  # fmt: skip


@pytest.mark.parametrize(
    "value", [True, 2, 2.5, Decimal("2.50"), date(2026, 1, 2), timedelta(hours=1), UUID(int=1)], ids=str
)
def test_what_has_one_form_as_text_is_printed(value: Any) -> None:
    assert compile_template("{{ c }}")({"c": value}) == str(value)


def test_what_is_not_a_number_is_missing() -> None:
    """As Python's json writes an empty cell of pandas."""
    columns = {"a": math.nan, "b": {"c": math.nan}}
    assert compile_template("<{{ a }}{{ b.c }}{{ row.a }}>")(columns) == "<>"
    assert not compile_where("a")(columns)
    assert compile_where("a is none and row.a is none")(columns)
