"""Names of flow runs: the config's name and when the run began, in place of two words that Prefect draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

DRAWN = re.compile(r"[a-z]+-[a-z]+")
"""A name that Prefect drew, say honorable-bittern; any other was given."""


def dated(title: str) -> str:
    """The title with the local time; to the second, so that two starts in a minute can be told apart."""
    return f"{title} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"


def run_name(title: str) -> str:
    """Name of the flow run in whose context this is called: its own where it was given one, else dated.

    A run that begins again, after a retry or because its process died, keeps the name with which it began.
    """
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run.name if run is not None and run.name and not DRAWN.fullmatch(run.name) else dated(title)


def title_of(config: Any, overrides: Sequence[str] | None) -> str:
    """Name of a run config, given as a file's path or as plain data; `name=` among the overrides wins."""
    given = [one.removeprefix("name=") for one in overrides or () if one.startswith("name=")]
    if given:
        return given[-1]
    return str(config.get("name", "")) if isinstance(config, Mapping) else Path(str(config)).stem
