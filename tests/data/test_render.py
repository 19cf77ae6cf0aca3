from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, TextSource
from resprout.tasks.acquire.rows import Counts, raw_items, text_items
from resprout.tasks.data.render import RowTemplates, compile_template, hash_percent


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


def holds_for(expression: str) -> Callable[[dict[str, Any]], bool]:
    templates = RowTemplates({}, expression)
    return lambda columns: templates(columns) is not None


def test_where() -> None:
    holds = holds_for("source_id.startswith('wikihow') and n | int > 2")
    assert holds({"source_id": "wikihow~1", "n": "3"}) is True
    assert holds({"source_id": "activitynet", "n": "3"}) is False
    with pytest.raises(BadInput, match=r"'source_id' is undefined.*columns are: n"):
        holds({"n": "3"})
    with pytest.raises(BadInput, match="does not parse"):
        holds_for("a ==")


def test_where_on_a_missing_column_alone_is_an_error() -> None:
    with pytest.raises(BadInput, match="columns are: n"):
        holds_for("kept")({"n": 1})


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
    assert not holds_for("a")(columns)
    assert holds_for("a is none and row.a is none")(columns)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ 'a' * 10**11 }}", "more than 4 GiB of memory"),
        ("{{ a | replace('a', 'b' * 10**6) | replace('b', 'c' * 99) }}", "99,000,0.. characters of a row"),
        ("{{ a | center(10**8) }}", "100,000,0.. characters of a row"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth"),
        ("{% for b in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ a.__class__ }}{% for b in [] %}{% endfor %}", "unsafe"),
    ],
)
def test_a_template_of_a_row_has_limits(template: str, fault: str) -> None:
    with pytest.raises(BadInput, match=f"{fault}.*the row's columns are: a"):
        compile_template(template)({"a": "a"})


def test_a_template_without_end_stops_even_where_bad_rows_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three rows in a batch the one that does not end is named, and none behind it is tried."""
    monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 0.9)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "n": n}) + "\n" for n in (1, 99999, 2)))
    template = "{% for a in range(n) %}" * 5 + "{% endfor %}" * 5 + "{{ text }}"
    source, counts = TextSource(source="a.jsonl", text=template, on_bad_row="skip"), Counts()
    found = text_items(source, "a", {"a.jsonl": path}, counts=counts)
    assert next(found).text == "a"
    with pytest.raises(BadInput, match=r"a.jsonl, row 2: a template among .* did not end within 1 s of proc"):
        list(found)
    assert counts.bad == 0


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 1000 + "a" + ")" * 1000 + " }}",
        "{{ a" + " | trim" * 900 + " }}",
        "{% if a %}" * 150 + "{% endif %}" * 150,
        "{% if a %}" + "{% elif a %}" * 4000 + "{% endif %}",
        "{{ " + "9" * 5000 + " }}",
    ],
    ids=["parentheses", "filters", "blocks", "branches", "digits"],
)
def test_a_template_that_python_cannot_compile_is_refused_at_once(template: str) -> None:
    fault = "does not parse|is too long or nested too deep for Jinja"
    with pytest.raises(BadInput, match=fault):
        RowTemplates({"x": template})
    if template.startswith("{{ "):
        with pytest.raises(BadInput, match=fault):
            RowTemplates({}, template.strip("{} "))


def test_a_row_that_is_too_deep_for_json_is_bad_input() -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(BadInput, match="nested too deep for templates with loops"):
        compile_template("{% for b in a %}{% endfor %}")({"a": deep})
    read = Mock(return_value=iter([(1, {"a": deep})]))
    with pytest.raises(BadInput, match=r"a\.jsonl, row 1: expected plain columns, found maximum recursion"):
        list(raw_items(DataSource(source="a.jsonl"), "a", {"a.jsonl": Path("a.jsonl")}, read))


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), date(2026, 1, 2), time(1, 2),
        timedelta(days=1, seconds=2),
        Decimal("2.50"), UUID(int=1), math.pi, 10**30, "\ud83d", True, None, "",
    ],
    ids=str,
)  # fmt: skip
def test_a_child_prints_what_this_process_prints(value: Any) -> None:
    simple, looping = (
        RowTemplates({"x": one}) for one in ("{{ a }}", "{% for b in [a] %}{{ b }}{% endfor %}")
    )
    row = {"a": value, "": ["date", "2026-01-02"]}
    assert looping(row) == simple(row)
