"""`resprout validate`: is this config right? Answers in under a second, imports neither torch nor Prefect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def validate(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. prune.target.params_ratio=0.8")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved config as JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Check a run config: keys, values, files, methods, and sections that need each other.

    \b
    Examples:
      resprout validate configs/quickstart.yaml
      resprout validate configs/quickstart.yaml prune.target.params_ratio=0.8
      resprout validate configs/quickstart.yaml --json
    """
    from resprout.configs.load import load
    from resprout.flows.check import check

    loaded = load(config, overrides or ())
    check(loaded)
    if as_json:
        typer.echo(json.dumps(loaded.config.public(), sort_keys=True))
    else:
        typer.echo(f"{config} is a valid run config ({loaded.config.name})")
