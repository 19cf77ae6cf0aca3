"""Render the templates of lm-eval's tasks in a sandbox in a child process: lm-eval itself does so in none."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from resprout.configs.errors import BadInput
from resprout.tasks.data.confined import Confined, Failed

UNDEFINED = re.compile("'(\\w+)' is undefined")
"""Jinja's sentence about a name that nothing gives a value; a field that an object lacks has another."""


class Lacking(StrictUndefined):
    """What a row lacks; fails inside of a list as well, where Jinja's own is written as a word."""

    def __repr__(self) -> str:
        return str(self)


class TemplateFault(BadInput):
    """A template that fails on a row, leaves its sandbox, takes too long or writes too much."""


@functools.cache
def confine() -> None:
    """Have lm-eval render templates by `render` for the rest of this process."""
    from lm_eval import utils

    vars(utils)["apply_template"] = render


def render(template: str, row: Mapping[str, Any]) -> str:
    """The text that a template makes of a row, as in lm-eval's own environment; else TemplateFault."""
    (found,) = _child()([[template, dict(row)]])
    if isinstance(found, Failed):
        raise TemplateFault(_sentence(template, found))
    return str(found)


def faults(template: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str | None, str]]:
    """The rows that a template fails on: number from 1, the column that it lacks, and what is wrong in words.

    The column is None where another thing is wrong. A field that is lacking inside of a column is no fault:
    what reads the rows for lm-eval makes up for those that other rows have.
    """
    for number, found in _child().over((at, [template, dict(row)]) for at, row in enumerate(rows, 1)):
        if not isinstance(found, Failed):
            continue
        lacking = UNDEFINED.fullmatch(found.said)
        if found.kind != UndefinedError.__name__ or lacking is not None:
            yield number, lacking and lacking[1], _sentence(template, found)


def _sentence(template: str, found: Failed) -> str:
    return f"the template {template[:80]!r} {found if found.ended else f'gives {found}'}"


def task_renderer(_: Any) -> Callable[[tuple[str, dict[str, Any]]], str]:
    """A function from a template and a row to the text, for a child process."""
    made = ImmutableSandboxedEnvironment(undefined=Lacking, keep_trailing_newline=True)
    made.filters["regex_replace"] = regex_replace
    compiled = functools.lru_cache(maxsize=64)(made.from_string)
    return lambda asked: compiled(asked[0]).render(**asked[1])


def regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """The filter that lm-eval adds to Jinja's."""
    return re.sub(pattern, repl, string, count=count)


@functools.cache
def _child() -> Confined:
    """One for all tasks of this process."""
    return Confined(task_renderer, None)
