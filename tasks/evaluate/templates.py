"""Render the templates of lm-eval's tasks in a sandbox in a child process: lm-eval itself does so in none."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from resprout.configs.errors import BadInput
from resprout.tasks.data.confined import Confined, Failed


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
        raise TemplateFault(f"the template {template[:80]!r} {found if found.ended else f'gives {found}'}")
    return str(found)


def task_renderer(_: Any) -> Callable[[tuple[str, dict[str, Any]]], str]:
    """A function from a template and a row to the text, for a child process."""
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
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
