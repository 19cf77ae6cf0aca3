"""Find by the first rows of a file which columns hold a text, a task and its answer: templates for a config.

Names decide, in the order in which data sets use them most; then what the values are: a text, a list of chat
turns, an answer inside a mapping or a list, the number of a choice.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import RowSource, TextSource
from resprout.tasks.data.chat_turns import has_question, is_chat

Rows = Sequence[Mapping[str, Any]]

DOCUMENTS = (
    "text",
    "content",
    "document",
    "passage",
    "body",
    "article",
    "page_content",
    "raw_content",
    "code",
)
TASKS = ("instruction", "prompt", "question", "query", "problem", "request", "input")
MATERIALS = ("input", "context", "passage", "background", "document")
ANSWERS = (
    "output", "response", "completion", "answer", "answers", "solution", "reply", "chosen", "target",
)  # fmt: skip
CATEGORIES = ("category", "subject", "topic", "domain")
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
CHOICES = ("choices", "options", "endings")
NUMBERS = (*ANSWERS, "label", "gold", "correct")
"""Columns that may hold the number of the right choice."""
INSIDE = ("value", "text", "content", "answer")
"""Keys of a mapping that hold its text."""
RESERVED = (
    "row",
    "loop",
    "true",
    "false",
    "none",
    "range",
    "dict",
    "namespace",
    "cycler",
    "joiner",
    "lipsum",
)
"""Names that mean something else in a Jinja template."""
APART = r"\n\n"
PAIR = ("instruction", "input", "output")
NEVER_EMPTY = ("| first_question", "| first_answer")
"""How expressions end that fail on a row without text."""
EMPTY = ' | default("", true)'
"""Makes a missing value an empty text."""


@dataclass(frozen=True)
class Mapped:
    """Settings of a source that differ from its defaults, which columns they take, and all expressions."""

    settings: Mapping[str, str]
    taken: str
    expressions: Mapping[str, str]


def text_columns(rows: Rows, place: str) -> Mapped:
    """The settings of a text source for such rows; BadInput where no column holds text."""
    if chat := _chat(CHATS, rows):
        return _settled({"text": f"{_name(chat)} | all_turns"}, f"all turns of {chat}", TextSource)
    if column := _named(DOCUMENTS, rows):
        return _settled({"text": _value(column, rows)}, f"column {column}", TextSource)
    try:
        return pair_text(row_columns(rows, place))
    except BadInput:
        if column := _longest(rows):
            taken = f"column {column}, whose texts are the longest"
            return _settled({"text": _value(column, rows)}, taken, TextSource)
    raise BadInput(
        f"{place} has no column of text; its columns are {_listed(rows)}; give a file with a column `text`"
    )


def pair_text(mapped: Mapped) -> Mapped:
    """The settings of a text source over the rows of a pool: task, material and answer as one text.

    Rows that lack the task or the answer are left out, as of the pool.
    """
    parts = [mapped.expressions[key] for key in PAIR if key in mapped.expressions]
    text = f'[{", ".join(parts)}] | reject("in", [none, ""]) | join("{APART}")'
    needed = [mapped.expressions[key] for key in ("instruction", "output")]
    lacking = [f'{one} not in [none, ""]' for one in needed if not one.endswith(NEVER_EMPTY)]
    where = {"where": " and ".join(lacking)} if lacking else {}
    return Mapped({"text": f"{{{{ {text} }}}}", **where}, f"as one text, {mapped.taken}", {"text": text})


def row_columns(rows: Rows, place: str) -> Mapped:
    """The settings of a pool for such rows; BadInput where task and answer cannot be told apart."""
    if chat := _chat(CHATS, rows):
        return _of_chat(_name(chat), chat)
    task, answer = _named(TASKS, rows), _named(ANSWERS, rows)
    choice = _choice(rows)
    if answer is not None and choice is None and (both := _as_chat(task, answer, rows)):
        return _of_chat(*both)
    if task is None or (answer is None and choice is None):
        if chat := _chat((*ANSWERS, *_every(rows)), rows):
            return _of_chat(_name(chat), chat)
        raise BadInput(
            f"{place} has no columns for a task and its answer; its columns are {_listed(rows)}; known are "
            f"{TASKS[0]} and {ANSWERS[0]}, {TASKS[2]} and {ANSWERS[3]}, ..., or {CHATS[0]} with chat turns; "
            f"leave out --pool and name yours in the config, as select: {{pool: [{{source: {place}, "
            'instruction: "{{ column_of_the_task }}", output: "{{ column_of_the_answer }}"}]}'
        )
    found = {"instruction": _value(task, rows), "output": choice or _value(str(answer), rows)}
    taken = [f"instruction from {task}", f"output from {'the right choice' if choice else answer}"]
    for key, names in (("input", MATERIALS), ("category", CATEGORIES)):
        column = _named([name for name in names if name != task.lower()], rows)
        if column is not None:
            found[key] = _value(column, rows) + EMPTY
            taken.append(f"{key} from {column}")
        elif task == key:
            # Its default would be the task once more.
            found[key] = '""'
    return _settled(found, ", ".join(taken), RowSource)


def _of_chat(chat: str, shown: str) -> Mapped:
    """The settings of a pool whose rows are chats, by the Jinja expression of one."""
    chat = f"({chat})" if " + " in chat else chat
    found = {"instruction": f"{chat} | first_question", "output": f"{chat} | first_answer"}
    taken = f"the first question of {shown}, behind the system's text, and its answer; no later turns"
    return _settled(found, taken, RowSource)


def _as_chat(task: str | None, answer: str, rows: Rows) -> tuple[str, str] | None:
    """A chat of the columns of task and answer, and what it is called; None where neither has turns."""
    replies = _sample(answer, rows)
    if is_chat(replies) and has_question(replies):
        # Preferred answers often repeat the task.
        return _name(answer), answer
    turns = {column: is_chat(_sample(column, rows)) for column in (task, answer) if column is not None}
    if task is None or not any(turns.values()):
        return None
    sides = [
        _name(column) if turns[column] else f'[{{"role": "{role}", "content": {_name(column)}}}]'
        for column, role in ((task, "user"), (answer, "assistant"))
    ]
    return " + ".join(sides), f"{task} and {answer}"


def _settled(found: Mapping[str, str], taken: str, source: type[TextSource] | type[RowSource]) -> Mapped:
    """Templates where they are not the defaults."""
    settings = {
        key: f"{{{{ {expression} }}}}"
        for key, expression in found.items()
        if expression.removesuffix(EMPTY) != source.model_fields[key].default.strip("{} ").partition(" ")[0]
    }
    return Mapped(settings, taken, found)


def _every(rows: Rows) -> list[str]:
    """The columns of the rows."""
    return list(dict.fromkeys(str(column) for row in rows for column in row))


def _columns(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """The columns that have one of these names, whatever its case, in the order of the names."""
    known = {column.lower(): column for column in _every(rows)}
    yield from (known[name.lower()] for name in names if name.lower() in known)


def _sample(column: str, rows: Rows) -> Any:
    """The first value of a column that holds something."""
    return next((row[column] for row in rows if row.get(column) not in (None, "", [], {})), None)


def _named(names: Sequence[str], rows: Rows) -> str | None:
    """The first column of these names that holds text."""
    return next((column for column in _columns(rows, names) if _inside(column, rows)), None)


def _name(column: str) -> str:
    """A column as a Jinja expression."""
    plain = column.isidentifier() and not keyword.iskeyword(column) and column.lower() not in RESERVED
    return column if plain else f"row[{json.dumps(column, ensure_ascii=False)}]"


def _value(column: str, rows: Rows) -> str:
    """The text of a column, which may lie inside a mapping or a list, as a Jinja expression."""
    return _inside(column, rows) or _name(column)


def _inside(column: str, rows: Rows) -> str | None:
    """Where in a column its text is, by the first row that has some; None where none has."""
    found = (_text_in(_name(column), row.get(column)) for row in rows)
    return next((expression for expression in found if expression), None)


def _text_in(expression: str, value: Any) -> str | None:
    """A Jinja expression of the text in such a value; None where it holds none."""
    if is_chat(value):
        return f"{expression} | all_turns"
    if isinstance(value, list):
        return _text_in(f"{expression} | first", value[0]) if value else None
    if isinstance(value, Mapping):
        inner = f"({expression})" if "|" in expression else expression
        keys = (key for key in INSIDE if value.get(key))
        return next((one for key in keys if (one := _text_in(f"{inner}.{key}", value[key]))), None)
    if value in (None, "") or (isinstance(value, Iterable) and not isinstance(value, str)):
        return None
    return expression


def _chat(names: Sequence[str], rows: Rows) -> str | None:
    """The first column of these names that holds chats in which the user speaks."""
    samples = ((column, _sample(column, rows)) for column in _columns(rows, names))
    return next((column for column, one in samples if is_chat(one) and has_question(one)), None)


def _choice(rows: Rows) -> str | None:
    """The right choice of rows that list some and its number; None where they do not."""
    for listed in _columns(rows, CHOICES):
        for number in _columns(rows, NUMBERS) if isinstance(_sample(listed, rows), list) else ():
            if str(_sample(number, rows)).isdigit():
                return f"{_name(listed)}[{_name(number)} | int]"
    return None


def _longest(rows: Rows) -> str | None:
    """The column of strings that are the longest on average."""
    strings = [name for name in _every(rows) if all(isinstance(row.get(name), str | None) for row in rows)]
    lengths = {name: sum(len(row.get(name) or "") for row in rows) for name in strings}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return longest if longest and lengths[longest] else None


def _listed(rows: Rows) -> str:
    return ", ".join(_every(rows)) or "none"
