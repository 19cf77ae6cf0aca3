"""`resprout schema`: the JSON schema of a run config, or of the result that `run --json` prints."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    result: Annotated[bool, typer.Option("--result", help="Schema of `resprout run --json`.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Print the JSON schema of a run config, for completion in editors.

    \b
    Examples:
      resprout schema > resprout.schema.json
      resprout schema --result
      resprout schema | python -m json.tool
    """
    from resprout.configs.result import RunResult
    from resprout.configs.schema import RunConfig

    model = RunResult if result else RunConfig
    typer.echo(json.dumps(model.model_json_schema(), indent=1, sort_keys=True))
