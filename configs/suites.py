"""Evaluation tasks and suites that ship, by name, as plain data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

EVALUATION = Path(__file__).parent / "evaluation"
"""Folder of the evaluation tasks that ship."""
SUITES = EVALUATION / "suites"
"""Folder of the suites that ship."""
ENDINGS = (".yaml", ".yml")
"""Of a name that is the path of a file of one's own."""
SUITE = "suite"
"""Key of a suite that is named and changed: {suite: NAME, limit: 100}."""


def shipped_tasks() -> list[str]:
    """Names of the evaluation tasks that ship, sorted."""
    return sorted(path.stem for path in EVALUATION.glob("*.yaml"))


def shipped_suites() -> list[str]:
    """Names of the suites that ship, sorted."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def named_suite(given: Any) -> str | None:
    """The suite that an entry of `evaluate.suites` names; None where it is written out."""
    name = given.get(SUITE) if isinstance(given, Mapping) else given
    return name if isinstance(name, str) else None


def shipped_suite(given: Any) -> Any:
    """An entry of `evaluate.suites` with the shipped suite that it names written out.

    Raises:
        ValueError: no suite of that name ships.
    """
    name = named_suite(given)
    if name is None:
        return given
    path = SUITES / f"{name}.yaml"
    if name not in shipped_suites():
        near = difflib.get_close_matches(name, shipped_suites(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"there is no suite {name}; {hint}give one of {', '.join(shipped_suites())}, or the path of a "
            "YAML"
        )
    return changed(yaml.safe_load(path.read_text(encoding="utf-8")), given)


def changed(suite: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """A suite with the settings that an entry gives beside its name."""
    own = {key: value for key, value in given.items() if key != SUITE} if isinstance(given, Mapping) else {}
    return {**suite, **own}
