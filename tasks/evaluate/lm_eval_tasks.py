"""lm-eval's own tasks by name: settings as plain data, in which a function is a name inside the package.

The package is installed, so its code is as trusted as ours; of a task file from elsewhere no code runs. Such
a file may name lm-eval's functions as `lm_eval:folder/module.function`, and whole tasks by `include:
lm_eval:NAME`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import LM_EVAL

NAME = re.compile(r"^[\"']?task[\"']?:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
MODULES = "lm_eval.tasks."
"""Begins the modules of lm-eval's tasks."""


@functools.cache
def folder() -> Path:
    """The folder of lm-eval's tasks; imports nothing of it."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise BadInput("lm-eval is not installed; install resprout's own dependencies again")
    return Path(found.origin).parent / "tasks"


def lm_eval_task(name: str) -> dict[str, Any]:
    """The settings of lm-eval's task `name`, without its data set.

    Raises:
        BadInput: there is no such task; the nearest one is named.
    """
    path = _files(folder()).get(name)
    if path is None:
        near = difflib.get_close_matches(name, _files(folder()), n=1)
        hint = f"did you mean {LM_EVAL}{near[0]}? " if near else ""
        raise BadInput(f"lm-eval has no task {name}; {hint}`lm_eval ls tasks` lists them")
    return _read(path)


def resolved(settings: Any) -> Any:
    """Settings in which the names of lm-eval's functions are these functions."""
    if isinstance(settings, dict):
        return {key: resolved(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [resolved(value) for value in settings]
    if isinstance(settings, str) and settings.startswith(LM_EVAL):
        return _function(settings)
    return settings


@functools.cache
def _files(root: Path) -> dict[str, Path]:
    """The files of all tasks by name; of two of one name the first, as lm-eval has it."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml"), key=Path.as_posix):
        # Parsing all of them takes many seconds.
        if (named := NAME.search(path.read_text(encoding="utf-8", errors="replace"))) is not None:
            found.setdefault(named[1], path)
    return found


def _read(path: Path) -> dict[str, Any]:
    """A task's settings with those of the files that it includes, its own first."""
    place = path.parent.relative_to(folder()).as_posix()

    class Loader(yaml.SafeLoader):
        """Reads a function as its name."""

    def name(loader: yaml.Loader, node: yaml.ScalarNode) -> str:
        given = str(loader.construct_scalar(node))
        if given.startswith(MODULES):
            module, _, called = given.removeprefix(MODULES).rpartition(".")
            return f"{LM_EVAL}{module.replace('.', '/')}.{called}"
        return f"{LM_EVAL}{os.path.normpath(f'{place}/{given}')}"

    Loader.add_constructor("!function", name)
    settings: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    merged: dict[str, Any] = {}
    for one in _listed(settings.pop("include", [])):
        merged |= _read(_inside(path.parent / one))
    return merged | settings


def _listed(given: Any) -> Iterator[str]:
    yield from given if isinstance(given, list) else [given]


def _function(name: str) -> Any:
    """The function of lm-eval that is called so.

    Raises:
        BadInput: it is none, or needs a package that is not installed.
    """
    module, _, called = name.removeprefix(LM_EVAL).rpartition(".")
    file = _inside(folder() / f"{module.replace('.', '/')}.py")
    if not file.is_file():
        raise BadInput(f"{name} is no function of lm-eval; name one as lm_eval:folder/module.function")
    try:
        found = importlib.import_module(MODULES + module.replace("/", "."))
    except ImportError as error:
        raise BadInput(
            f"{name} needs a package that is not installed ({error}); install lm-eval with the extra of this "
            "task, or leave it out"
        ) from None
    if not callable(function := getattr(found, called, None)):
        raise BadInput(f"{name} is no function of lm-eval; name one as lm_eval:folder/module.function")
    return function


def _inside(path: Path) -> Path:
    """The path, which must not leave lm-eval's folder of tasks."""
    whole = path.resolve()
    if not whole.is_relative_to(folder().resolve()):
        raise BadInput(f"{path} is not inside lm-eval's tasks; name functions of these alone")
    return whole
