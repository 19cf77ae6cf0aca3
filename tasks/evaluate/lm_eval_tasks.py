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
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import LM_EVAL
from resprout.configs.suites import shipped_tasks

NAME = re.compile(r"^[\"']?task[\"']?:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
GROUP = re.compile(r"^group:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
TAGS = re.compile(r"^[\"']?tag[\"']?:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
MEMBERS = 3
"""Tasks of a group that are named."""
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
        if members := list(islice(_members(name), MEMBERS + 1)):
            more = ", ..." if len(members) > MEMBERS else ""
            ours = f", or {name}, which resprout has" if name in shipped_tasks() else ""
            raise BadInput(
                f"{LM_EVAL}{name} is a group of tasks; name one of them "
                f"({', '.join(LM_EVAL + one for one in members[:MEMBERS])}{more}){ours}"
            )
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


def _members(name: Any) -> Iterator[str]:
    """The tasks behind a name or an entry of a group: one, or those of a group or of a tag."""
    if isinstance(name, dict):
        name = name.get("task")
    if isinstance(name, list):
        for one in name:
            yield from _members(one)
    elif name in _files(folder()):
        yield name
    elif (path := _groups(folder()).get(name)) is not None:
        yield from _members(_read(path).get("task"))
    else:
        yield from sorted(task for task, path in _files(folder()).items() if name in _tags(path))


@functools.cache
def _groups(root: Path) -> dict[str, Path]:
    """The files of all groups by name."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml"), key=Path.as_posix):
        if (named := GROUP.search(path.read_text(encoding="utf-8", errors="replace"))) is not None:
            found.setdefault(named[1], path)
    return found


def _tags(path: Path) -> list[str]:
    """The tags of the task in a file, by which lm-eval calls several together."""
    found = TAGS.search(path.read_text(encoding="utf-8", errors="replace"))
    return re.findall(r"[\w.+][\w.+-]*", found[1]) if found is not None else []


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
            f"{name} needs the package {error.name}, which is not installed ({error}); install it, with what "
            "else lm-eval's extra of this task names, or leave the task out"
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
