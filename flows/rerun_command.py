"""Build the command line and a portable config that repeat a run; hash a run config.

Neither names servers, credentials or, where it can be avoided, folders of this machine: they decide no bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resprout.configs.load import PREFIX, RESERVED, Loaded
from resprout.configs.schema import LM_EVAL
from resprout.configs.suites import EVALUATION
from resprout.tasks.acquire.source import scheme_of
from resprout.tasks.evaluate.task_files import task_file

INFRA = "infra"


def public_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides without those of `infra`, which name places and may hold credentials."""
    return [one for one in overrides if one.partition("=")[0].split(".")[0] != INFRA]


def command(loaded: Loaded, overrides: Iterable[str], environ: Mapping[str, str] | None = None) -> str:
    """The command line that makes the run again from the root of the config's project.

    Where the config is in no project, its own folder is the root. What RESPROUT_* variables set is written
    as overrides, before those of the command line, which win.
    """
    given = public_overrides(overrides)
    named = {one.partition("=")[0] for one in given}
    own = [one for one in _from_environment(environ) if one.partition("=")[0] not in named]
    return shlex.join(["resprout", "run", _from_root(loaded), *own, *given])


def standalone(loaded: Loaded, data: dict[str, Any]) -> dict[str, Any]:
    """A run config's plain data with the paths that begin at the config's folder made absolute."""

    def resolved(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolved(name, inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [resolved(key, inner) for inner in value]
        if _names_source(key) and isinstance(value, str) and scheme_of(value) == "local":
            return value if value.startswith("file:") else str(loaded.base / Path(value).expanduser())
        if key == "task" and isinstance(value, str) and not value.startswith(LM_EVAL):
            file = task_file(value, loaded.base)
            return value if file.parent == EVALUATION else str(file.absolute())
        return value

    return {name: resolved(name, value) for name, value in data.items()}


def local_places(data: Any) -> list[str]:
    """Paths of this machine in a run config's plain data."""
    if isinstance(data, list):
        return [place for value in data for place in local_places(value)]
    if not isinstance(data, dict):
        return []
    found = []
    for key, value in data.items():
        if (key == "task" or _names_source(key)) and isinstance(value, str):
            is_path = scheme_of(value) == "local" if key != "task" else value.endswith((".yaml", ".yml"))
            found += [value] if is_path else []
        else:
            found += local_places(value)
    return found


def _names_source(key: str) -> bool:
    return key == "source" or key.endswith("_source")


def config_digest(loaded: Loaded) -> str:
    """sha256 of the resolved config without infrastructure and secrets."""
    return digest_of_config({key: value for key, value in loaded.config.public().items() if key != "infra"})


def digest_of_config(data: dict[str, Any]) -> str:
    """The same of a config that a record keeps as plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _from_environment(environ: Mapping[str, str] | None) -> list[str]:
    found = os.environ if environ is None else environ
    settings = [
        f"{name[len(PREFIX) :].lower().replace('__', '.')}={value}"
        for name, value in sorted(found.items())
        if name.startswith(PREFIX) and name not in RESERVED
    ]
    return public_overrides(settings)


def _from_root(loaded: Loaded) -> str:
    path = loaded.path.resolve()
    for folder in path.parents:
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return str(path.relative_to(folder))
    return path.name
