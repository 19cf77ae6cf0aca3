"""Columns to text: Jinja templates and conditions in a sandbox, and the hash that splits rows by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from functools import lru_cache
from hashlib import sha256
from numbers import Number
from typing import Any, TypeAlias
from uuid import UUID

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat_turns import FILTERS

Columns: TypeAlias = Mapping[str, Any]

# What a template over data of the wrong type raises besides Jinja's own errors, say `{{ 1 / answer }}`.
_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


_PLAIN = (str, Number, date, time, timedelta, UUID, Undefined)
"""Types whose values print as text."""


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_printable)
    made.filters.update(FILTERS)
    return made


def _printable(value: Any) -> Any:
    """A value that prints as a text, what is missing as none; TypeError where Python has its own form."""
    if _is_missing(value):
        return ""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Iterable):
        raise TypeError(
            f"it gives a {type(value).__name__}, which is no text; take a value inside of it, or of "
            f"chat turns {' or '.join(FILTERS)}"
        )
    raise TypeError(
        f"it gives a {type(value).__name__}, which is no text; reach a field with the name of a Python "
        "method or of Jinja's own in brackets, as row['items']"
    )


def _is_missing(value: Any) -> bool:
    """Null, or not a number, as which Python's json writes a missing cell of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def compile_template(text: str) -> Callable[[Columns], str]:
    """A function from a row's columns to the rendered text; a null column renders as nothing.

    Columns are variables; a name that is no identifier is reached as `row['name']`. Beside Jinja's filters
    there are those of `chat_turns`.

    Raises:
        BadInput: the template does not parse (now), or a row lacks a column or has a wrong type (when
            rendered; the message lists the row's columns), or what is to be printed is no text.
    """
    try:
        template = _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise BadInput(
            f"the template {text!r} does not parse: {error.message}; see Jinja's syntax"
        ) from error

    def render(columns: Columns) -> str:
        try:
            return template.render(_variables(columns))
        except _FAULTS as error:
            raise _unrenderable("template", text, columns, error) from error

    return render


def compile_where(expression: str) -> Callable[[Columns], bool]:
    """A function that says whether a row's columns fulfil a Jinja expression, say `source == 'wiki'`.

    Raises:
        BadInput: as `compile_template`.
    """
    try:
        evaluate = _environment().compile_expression(expression, undefined_to_none=False)
    except TemplateSyntaxError as error:
        raise BadInput(f"where {expression!r} does not parse: {error.message}; see Jinja's syntax") from error

    def holds(columns: Columns) -> bool:
        try:
            return bool(evaluate(_variables(columns)))
        except _FAULTS as error:
            raise _unrenderable("where", expression, columns, error) from error

    return holds


def hash_percent(text: str) -> int:
    """SHA-256 of the UTF-8 text modulo 100: a number in 0..99 that neither order nor pool changes."""
    return int(sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 100


def _variables(columns: Columns) -> dict[str, Any]:
    known = {name: None if _is_missing(value) else value for name, value in columns.items()}
    return {**known, "row": known}


def _unrenderable(what: str, text: str, columns: Columns, error: Exception) -> BadInput:
    known = ", ".join(map(str, columns)) or "none"
    return BadInput(f"the {what} {text!r} does not work on a row: {error}; the row's columns are: {known}")
