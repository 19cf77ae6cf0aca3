"""Call Python's regular expressions in a child process with limits: by themselves they have none of time.

Tasks and rows bring expressions of their own, and `(a+)+$` takes twice as long for each letter more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.data.confined import Confined, Failed


class ExpressionFault(BadInput):
    """An expression that is none, or takes too long or too much memory on a text."""


class Expression:
    """Stands for a compiled expression in code of lm-eval."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def findall(self, text: str) -> list[Any]:
        """As `re.Pattern.findall`."""
        found = _call("findall", self._pattern, text)
        return [tuple(one) if isinstance(one, list) else one for one in found]


class Expressions:
    """Stands for the module `re` in code of lm-eval."""

    compile = Expression
    escape = staticmethod(re.escape)

    @staticmethod
    def findall(pattern: str, text: str) -> list[Any]:
        """As `re.findall`."""
        return Expression(pattern).findall(text)

    @staticmethod
    def sub(pattern: str, repl: str, text: str) -> str:
        """As `re.sub`."""
        return str(_call("sub", pattern, text, repl))


@functools.cache
def confine() -> None:
    """Have lm-eval's filters and metrics call expressions here for the rest of this process."""
    from lm_eval.api import metrics
    from lm_eval.filters import extraction

    for module in (metrics, extraction):
        vars(module)["re"] = Expressions


def is_found(pattern: str, text: str) -> bool:
    """Whether `re.search` finds the pattern, for which each line begins and ends."""
    return bool(_call("search", pattern, text))


def fault_of(pattern: Any) -> str:
    """Why a value is no expression; empty where it is one."""
    (found,) = _child()([["compile", pattern]])
    return found.said if isinstance(found, Failed) else ""


CALLS: Mapping[str, Callable[..., Any]] = {
    "compile": lambda pattern: re.compile(pattern, re.MULTILINE) is not None,
    "findall": re.findall,
    "search": lambda pattern, text: re.search(pattern, text, re.MULTILINE) is not None,
    "sub": lambda pattern, text, repl: re.sub(pattern, repl, text),
}
"""What is called in the child, by name."""


def caller(_: Any) -> Callable[[Sequence[Any]], Any]:
    """A function from a name of `CALLS` and arguments to the result, for a child process."""
    return lambda asked: CALLS[asked[0]](*asked[1:])


def _call(name: str, pattern: str, text: str, *more: str) -> Any:
    (found,) = _child()([[name, pattern, text, *more]])
    if isinstance(found, Failed):
        what = found if found.ended else f"gives {found}"
        raise ExpressionFault(
            f"the regular expression {pattern!r:.80} {what} on a text of {len(text):,} characters; write it "
            "without a repeat inside of a repeat"
        )
    return found


@functools.cache
def _child() -> Confined:
    """One for all expressions of this process."""
    return Confined(caller, None)
