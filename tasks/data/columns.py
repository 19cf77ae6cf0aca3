"""Find by the first rows of a file which columns hold a text, a task and its answer: templates for a config.

Names decide, in the order in which data sets use them most; then what the values are: a text, a list of chat
messages, an answer inside a mapping or a list, the number of a choice.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import RowSource, TextSource
from resprout.tasks.data.render import compile_where

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
SPEAKERS = {"role": ("user", "assistant", "content"), "from": ("human", "gpt", "value")}
"""Keys that say who speaks in a chat: names of the two sides, and the key of what they say."""
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
REQUIRED = ("text", "instruction", "output")
"""Fields that no row may leave empty."""
APART = r"\n\n"
PAIR = ("instruction", "input", "output")
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
    if chat := _chat(rows):
        turns, _, (_, _, says) = chat
        joined = f'{_name(turns)} | map(attribute="{says}") | join("{APART}")'
        return _settled({"text": joined}, rows, f"all turns of {turns}", TextSource)
    if column := _named(DOCUMENTS, rows):
        return _settled({"text": _value(column, rows)}, rows, f"column {column}", TextSource)
    try:
        return pair_text(row_columns(rows, place))
    except BadInput:
        if column := _longest(rows):
            taken = f"column {column}, whose texts are the longest"
            return _settled({"text": _value(column, rows)}, rows, taken, TextSource)
    raise BadInput(
        f"{place} has no column of text; its columns are {_listed(rows)}; give a file with a column `text`"
    )


def pair_text(mapped: Mapped) -> Mapped:
    """The settings of a text source over the rows of a pool: task, material and answer as one text."""
    parts = [mapped.expressions[key] for key in PAIR if key in mapped.expressions]
    text = f'[{", ".join(parts)}] | select | join("{APART}")'
    where = {key: value for key, value in mapped.settings.items() if key == "where"}
    taken = f"{mapped.taken}, joined to one text"
    return Mapped({"text": f"{{{{ {text} }}}}", **where}, taken, {"text": text})


def row_columns(rows: Rows, place: str) -> Mapped:
    """The settings of a pool for such rows; BadInput where task and answer cannot be told apart."""
    if chat := _chat(rows):
        turns, speaker, (asks, answers, says) = chat
        of = _name(turns) + ' | selectattr("{}", "equalto", "{}") | map(attribute="{}") | first'
        sides = {"instruction": asks, "output": answers}
        found = {key: of.format(speaker, side, says) for key, side in sides.items()}
        return _settled(found, rows, f"the first turn of {turns} and its answer", RowSource)
    task, answer = _named(TASKS, rows), _named(ANSWERS, rows)
    choice = _choice(rows)
    if task is None or (answer is None and choice is None):
        raise BadInput(
            f"{place} has no columns for a task and its answer; its columns are {_listed(rows)}; name two "
            f"of them {TASKS[0]} and {ANSWERS[0]} (or {TASKS[2]} and {ANSWERS[3]}, ...), or give a column "
            f"{CHATS[0]} with chat turns"
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
    return _settled(found, rows, ", ".join(taken), RowSource)


def _settled(
    found: Mapping[str, str], rows: Rows, taken: str, source: type[TextSource] | type[RowSource]
) -> Mapped:
    """Templates where they are not the defaults, and a condition where a row lacks what it must have."""
    needed = [f"{expression}{EMPTY} | string | trim" for key, expression in found.items() if key in REQUIRED]
    lacking = [one for one in needed if not all(map(compile_where(one), rows))]
    settings = {
        key: f"{{{{ {expression} }}}}"
        for key, expression in found.items()
        if expression.removesuffix(EMPTY) != source.model_fields[key].default.strip("{} ").partition(" ")[0]
    }
    if lacking:
        settings["where"] = " and ".join(f"({one})" for one in lacking)
    return Mapped(settings, taken, found)


def _columns(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """The columns that have one of these names, whatever its case, in the order of the names."""
    known = {str(column).lower(): str(column) for row in rows for column in row}
    yield from (known[name] for name in names if name in known)


def _sample(column: str, rows: Rows) -> Any:
    """The first value of a column that holds something."""
    return next((row[column] for row in rows if row.get(column) not in (None, "", [], {})), None)


def _named(names: Sequence[str], rows: Rows) -> str | None:
    """The first column of these names that holds something."""
    return next((column for column in _columns(rows, names) if _sample(column, rows) is not None), None)


def _name(column: str) -> str:
    """A column as a Jinja expression."""
    plain = column.isidentifier() and not keyword.iskeyword(column) and column.lower() not in RESERVED
    return column if plain else f"row[{json.dumps(column, ensure_ascii=False)}]"


def _value(column: str, rows: Rows) -> str:
    """The text of a column, which may lie inside a mapping or a list, as a Jinja expression."""
    expression, sample = _name(column), _sample(column, rows)
    if isinstance(sample, Mapping) and (key := next((one for one in INSIDE if sample.get(one)), None)):
        expression, sample = f"{expression}.{key}", sample[key]
    return f"{expression} | first" if isinstance(sample, list) else expression


def _chat(rows: Rows) -> tuple[str, str, tuple[str, str, str]] | None:
    """The column of a chat, the key that names the speaker, and what SPEAKERS says of it."""
    for column in _columns(rows, CHATS):
        turns = _sample(column, rows)
        turn = turns[0] if isinstance(turns, list) else None
        for speaker, names in SPEAKERS.items():
            if isinstance(turn, Mapping) and speaker in turn and names[2] in turn:
                return column, speaker, names
    return None


def _choice(rows: Rows) -> str | None:
    """The right choice of rows that list some and its number; None where they do not."""
    for listed in _columns(rows, CHOICES):
        for number in _columns(rows, NUMBERS) if isinstance(_sample(listed, rows), list) else ():
            if str(_sample(number, rows)).isdigit():
                return f"{_name(listed)}[{_name(number)} | int]"
    return None


def _longest(rows: Rows) -> str | None:
    """The column of strings that are the longest on average."""
    names = dict.fromkeys(str(column) for row in rows for column in row)
    strings = [name for name in names if all(isinstance(row.get(name), str | None) for row in rows)]
    lengths = {name: sum(len(row.get(name) or "") for row in rows) for name in strings}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return longest if longest and lengths[longest] else None


def _listed(rows: Rows) -> str:
    return ", ".join(dict.fromkeys(str(column) for row in rows for column in row)) or "none"
