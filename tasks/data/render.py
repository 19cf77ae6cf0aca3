"""Columns to text: Jinja templates and conditions in a sandbox, and the hash that splits rows by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from functools import lru_cache
from hashlib import sha256
from numbers import Number
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat_turns import FILTERS
from resprout.tasks.data.confined import Confined, Failed

Columns: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

# What a template over data of the wrong type raises besides Jinja's own errors, say `{{ 1 / answer }}`.
_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
_UNPARSED = (TemplateSyntaxError, RecursionError, ValueError)
"""The last where a number has thousands of digits."""
_UNCOMPILED = (SyntaxError, RecursionError, MemoryError, ValueError)
"""What Python raises on the code that Jinja writes for a template of some hundred levels."""

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


class Unbounded(BadInput):
    """A template that ended its process: no row by itself is at fault."""


class RowTemplates:
    """Templates over a row's columns, and the condition under which they are rendered.

    They run in this process where no node of them can make more than it is given; else in a child with
    limits, as `'a' * 10**11` and loops do.
    """

    def __init__(self, templates: Mapping[str, str], where: str | None = None) -> None:
        """Parse; nothing is computed here, as Jinja's compiler would.

        Raises:
            BadInput: one does not parse, is nested too deep, or names a filter or a test that there is not.
        """
        trees = [_parsed(text) for text in templates.values()]
        if where is not None:
            trees.append(_parsed_where(where))
        given = {"templates": dict(templates), "where": where}
        nodes_ = [node for tree in trees for node in _nodes(tree)]
        names = {node.name for node in nodes_ if isinstance(node, nodes.Name)}
        self._names = None if names & {"row", "self"} else sorted(names)
        self._shown = ", ".join(map(repr, (*templates.values(), *([where] if where else ()))))
        try:
            self._render = (
                row_renderer(given) if all(map(_is_bounded, nodes_)) else Confined(row_renderer, given)
            )
        except _UNCOMPILED as error:
            raise BadInput(
                f"a template among {self._shown[:200]} is too long or nested too deep for Jinja ({error}); "
                "write it shorter"
            ) from error

    def __call__(self, columns: Columns) -> dict[str, str] | None:
        """The texts of a row by the templates' names; None where the condition does not hold.

        Raises:
            BadInput: the row lacks a column or has a wrong type (the message lists the row's columns), or
                what is to be printed is no text.
        """
        ((_, found),) = self.over([(None, columns)])
        if isinstance(found, BadInput):
            raise found
        return found

    def over(self, rows: Iterable[tuple[T, Columns]]) -> Iterator[tuple[T, dict[str, str] | BadInput | None]]:
        """What each row comes with, and what a call would return or raise for it.

        What `rows` raises is raised behind the rows before.
        """
        if isinstance(self._render, Confined):
            asked = (((name, columns), self._asked(columns)) for name, columns in rows)
            for (name, columns), texts in self._render.over(asked):
                yield name, self._fault(columns, texts) if isinstance(texts, Failed) else texts
            return
        for name, columns in rows:
            found: dict[str, str] | BadInput | None
            try:
                found = self._render(columns)
            except RowFault as error:
                found = _unrenderable(str(error), columns)
            yield name, found

    def _asked(self, columns: Columns) -> Columns:
        return (
            columns if self._names is None else {key: columns[key] for key in self._names if key in columns}
        )

    def _fault(self, columns: Columns, failed: Failed) -> BadInput:
        if failed.ended:
            return Unbounded(f"a template among {self._shown} {failed}; write it without loops that go on")
        if failed.kind == RowFault.__name__:
            return _unrenderable(failed.said, columns)
        return _unrenderable(f"a template among {self._shown} does not work on a row: {failed}", columns)


class RowFault(ValueError):
    """A template or condition does not work on a row."""


def row_renderer(given: Mapping[str, Any]) -> Callable[[Columns], dict[str, str] | None]:
    """A function from a row to its texts, None where the condition does not hold; RowFault otherwise."""
    environment = _environment()
    templates = {name: environment.from_string(text) for name, text in given["templates"].items()}
    where = given["where"]
    holds = None if where is None else environment.compile_expression(where, undefined_to_none=False)

    def render(columns: Columns) -> dict[str, str] | None:
        variables, what, text = _variables(columns), "where", where
        try:
            if holds is not None and not holds(variables):
                return None
            found = {}
            for name, template in templates.items():
                what, text = "template", given["templates"][name]
                found[name] = template.render(variables)
        except _FAULTS as error:
            raise RowFault(f"the {what} {text!r} does not work on a row: {error}") from error
        return found

    return render


def compile_template(text: str) -> Callable[[Columns], str]:
    """A function from a row's columns to the rendered text; a null column renders as nothing.

    Columns are variables; a name that is no identifier is reached as `row['name']`. Beside Jinja's filters
    there are those of `chat_turns`. Raises BadInput as `RowTemplates` does.
    """
    templates = RowTemplates({"": text})

    def render(columns: Columns) -> str:
        return (templates(columns) or {})[""]

    return render


def _parsed(text: str) -> nodes.Node:
    try:
        return _known(_environment().parse(text))
    except _UNPARSED as error:
        raise BadInput(f"the template {text!r} does not parse: {_why(error)}; see Jinja's syntax") from error


def _parsed_where(expression: str) -> nodes.Node:
    try:
        parser = Parser(_environment(), expression, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise TemplateSyntaxError("more follows on the expression", 1)
        return _known(tree)
    except _UNPARSED as error:
        raise BadInput(f"where {expression!r} does not parse: {_why(error)}; see Jinja's syntax") from error


def _why(error: Exception) -> str:
    return str(getattr(error, "message", None) or error)


def _known(tree: nodes.Node) -> nodes.Node:
    """The tree, whose filters and tests are all known."""
    environment = _environment()
    for node in _nodes(tree):
        if isinstance(node, nodes.Filter | nodes.Test):
            there = environment.filters if isinstance(node, nodes.Filter) else environment.tests
            if node.name not in there:
                raise TemplateSyntaxError(
                    f"No {type(node).__name__.lower()} named {node.name!r}.", node.lineno
                )
    return tree


def _nodes(tree: nodes.Node) -> Iterator[nodes.Node]:
    todo = [tree]
    while todo:
        yield (node := todo.pop())
        todo += node.iter_child_nodes()


_LINEAR_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Concat, nodes.Add, nodes.Sub, nodes.Neg, nodes.Test, nodes.List, nodes.Tuple,
)  # fmt: skip
_LINEAR_FILTERS = {
    "default", "d", "trim", "lower", "upper", "title", "capitalize", "string", "int", "float", "length",
    "count", "first", "last", *FILTERS,
}  # fmt: skip
_LINEAR_METHODS = {"strip", "lstrip", "rstrip", "startswith", "endswith", "lower", "upper", "get"}


def _is_bounded(node: nodes.Node) -> bool:
    """Whether a node runs once and makes no more than a fixed multiple of what it is given."""
    if isinstance(node, nodes.Filter):
        return node.name in _LINEAR_FILTERS or (
            node.name == "join" and not node.kwargs and all(isinstance(one, nodes.Const) for one in node.args)
        )
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Getattr) and node.node.attr in _LINEAR_METHODS
    return isinstance(node, _LINEAR_NODES)


def hash_percent(text: str) -> int:
    """SHA-256 of the UTF-8 text modulo 100: a number in 0..99 that neither order nor pool changes."""
    return int(sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 100


def _variables(columns: Columns) -> dict[str, Any]:
    known = {name: None if _is_missing(value) else value for name, value in columns.items()}
    return {**known, "row": known}


def _unrenderable(what: str, columns: Columns) -> BadInput:
    return BadInput(f"{what}; the row's columns are: {', '.join(map(str, columns)) or 'none'}")
