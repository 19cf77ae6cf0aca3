"""Checks of written answers that run no code, as metrics of lm-eval.

An answer that is code is read, not run: that it can be read as Python is much less than that it is right
(HumanEval's pass@1 needs a sandbox, and resprout has none), but a model that lost code loses this first.
Instructions are checked as those of IFEval (arXiv 2311.07911) by what the answer looks like.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence

LONGEST = 20_000
"""Characters of an answer that is looked at."""


def is_python(references: Sequence[str], predictions: Sequence[str]) -> float:
    """1.0 where an answer, behind the code that it goes on with, is Python that defines what it should.

    The reference is JSON: {"before": code in front of the answer, "defines": name of a function or class}.
    """
    asked = json.loads(references[0])
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
    asked, answer = json.loads(references[0]), predictions[0].strip()[:LONGEST]
    least, most = asked.get("words") or (0, LONGEST)
    return float(
        bool(answer)
        and all(re.search(one, answer, re.MULTILINE) for one in asked.get("has") or ())
        and not any(re.search(one, answer, re.MULTILINE) for one in asked.get("lacks") or ())
        and least <= len(answer.split()) <= most
        and asked.get("lines") in (None, sum(bool(line.strip()) for line in answer.splitlines()))
        and (not asked.get("json") or _is_json(answer))
    )


@functools.cache
def register() -> None:
    """Make the checks known to lm-eval, as metrics whose mean counts."""
    from lm_eval.api.registry import register_metric

    for check in (is_python, follows):
        register_metric(
            metric=check.__name__, higher_is_better=True, output_type="generate_until", aggregation="mean"
        )(check)


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer.removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True
