"""Checks of written answers that run no code, as metrics of lm-eval.

An answer that is code is read, not run: that it can be read as Python is much less than that it is right
(HumanEval's pass@1 needs a sandbox, and resprout has none), but a model that lost code loses this first.
Instructions are checked as those of IFEval (arXiv 2311.07911) by what the answer looks like.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resprout.tasks.evaluate.expressions import fault_of, is_found

LONGEST = 20_000
"""Characters of an answer that is looked at."""


def is_python(references: Sequence[str], predictions: Sequence[str]) -> float:
    """1.0 where an answer, behind the code that it goes on with, is Python that defines what it should.

    The reference is JSON: {"before": code in front of the answer, "defines": name of a function or class}.
    """
    asked = code_asked(references[0])
    try:
        tree = ast.parse((asked.get("before", "") + predictions[0])[:LONGEST])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0.0
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in tree.body if isinstance(node, named)}
    wanted = asked.get("defines")
    return float(wanted in defined if wanted else bool(tree.body))


def follows(references: Sequence[str], predictions: Sequence[str]) -> float:
    """1.0 where an answer has everything that it should, and nothing that it should not.

    The reference is JSON with any of: "has", "lacks": regular expressions to be found or not;
    "words": [least, most]; "lines": how many that are not empty; "json": true.
    """
    asked, answer = instructions_asked(references[0]), predictions[0].strip()[:LONGEST]
    least, most = asked.get("words") or (0, LONGEST)
    return float(
        bool(answer)
        and all(is_found(one, answer) for one in asked.get("has") or ())
        and not any(is_found(one, answer) for one in asked.get("lacks") or ())
        and least <= len(answer.split()) <= most
        and asked.get("lines") in (None, sum(bool(line.strip()) for line in answer.splitlines()))
        and (not asked.get("json") or _is_json(answer))
    )


def code_asked(reference: str) -> Mapping[str, Any]:
    """The reference of `is_python`; one that is none raises ValueError."""
    asked = _keys_of(reference, ("before", "defines"))
    for key, value in asked.items():
        if not isinstance(value, str):
            raise ValueError(f"{key}: {value!r}, which is no text")
    return asked


def instructions_asked(reference: str) -> Mapping[str, Any]:
    """The reference of `follows`; one that is none, or an expression that is none, raises ValueError."""
    asked = _keys_of(reference, ("has", "lacks", "words", "lines", "json"))
    for key in ("has", "lacks"):
        found = asked.get(key, [])
        if not isinstance(found, list):
            raise ValueError(f"{key}: {found!r}, which is no list of regular expressions")
        for one in found:
            _require_expression(key, one)
    words = asked.get("words", [0, 0])
    if not isinstance(words, list) or len(words) != 2 or not all(map(_is_count, words)):
        raise ValueError(f"words: {words!r}, which is no [least, most]")
    if not _is_count(asked.get("lines", 0)):
        raise ValueError(f"lines: {asked['lines']!r}, which is no whole number")
    if not isinstance(asked.get("json", True), bool):
        raise ValueError(f"json: {asked['json']!r}, which is neither true nor false")
    return asked


ASKED: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "is_python": code_asked,
    "follows": instructions_asked,
}
"""By the name of a check the function that reads its references."""


@functools.cache
def register() -> None:
    """Make the checks known to lm-eval, as metrics whose mean counts."""
    from lm_eval.api.registry import register_metric

    for check in (is_python, follows):
        register_metric(
            metric=check.__name__, higher_is_better=True, output_type="generate_until", aggregation="mean"
        )(check)


def _keys_of(reference: str, known: Sequence[str]) -> dict[str, Any]:
    """The keys that a reference gives; rows of one file have the keys of all, null where they give none."""
    try:
        asked = json.loads(reference)
    except (ValueError, RecursionError):
        raise ValueError(f"{reference[:60]!r}, which is no JSON") from None
    if not isinstance(asked, dict):
        raise ValueError(f"{asked!r:.60}, which is no mapping with any of {', '.join(known)}")
    given = {key: value for key, value in asked.items() if value is not None}
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"{', '.join(unknown)}, and may have {', '.join(known)}")
    return given


def _require_expression(key: str, given: Any) -> None:
    if fault := fault_of(given):
        raise ValueError(f"{key}: {given!r}, which is no regular expression ({fault})")


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer.removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True
