"""`resprout verify`: that no byte, tag or link of a version changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, an artifact digest, or a stage's run id."),
    ],
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The problems as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Hash every file behind a version and its report again; hold records, tags and run against each other.

    Exit code 4 where a byte, a tag, a record or a link is not what it was.

    \b
    Examples:
      resprout verify models:/smollm2-135m-resprout@candidate
      resprout verify models:/smollm2-135m-resprout/1 --json
      resprout verify models:/smollm2-135m-resprout@candidate --config configs/quickstart.yaml
    """
    from resprout.configs.errors import VerificationFailed
    from resprout.flows.place import find, open_place

    place = open_place(config, reference)
    from resprout.flows.cli.claims import examine

    artifacts, problems = examine(place, find(place, reference))
    if as_json:
        typer.echo(json.dumps({"reference": reference, "artifacts": artifacts, "problems": problems}))
    if problems:
        raise VerificationFailed(f"{reference}: " + "; ".join(problems))
    if not as_json:
        typer.echo(f"{reference}: {artifacts} artifacts, every byte as published, every link holds")
