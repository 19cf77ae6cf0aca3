"""Columns to text: Jinja templates and conditions in a sandbox, and the hash that splits rows by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeAlias

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat_turns import FILTERS

Columns: TypeAlias = Mapping[str, Any]

# What a template over data of the wrong type raises besides Jinja's own errors, say `{{ 1 / answer }}`.
_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_printable)
    made.filters.update(FILTERS)
    return made


def _printable(value: Any) -> Any:
    """A value that prints as a text; TypeError for lists and mappings, which print as Python writes them."""
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str | Undefined):
        raise TypeError(
            f"it gives a {type(value).__name__}, which is no text; take a value inside of it, or of "
            f"chat turns {' or '.join(FILTERS)}"
        )
    return value


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
    return {**columns, "row": columns}


def _unrenderable(what: str, text: str, columns: Columns, error: Exception) -> BadInput:
    known = ", ".join(map(str, columns)) or "none"
    return BadInput(f"the {what} {text!r} does not work on a row: {error}; the row's columns are: {known}")
