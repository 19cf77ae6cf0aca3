"""`resprout schema`: all keys of a run config as a JSON schema or a table; the schema of `run --json`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    result: Annotated[bool, typer.Option("--result", help="Schema of `resprout run --json`.")] = False,
    table: Annotated[bool, typer.Option("--table", help="All keys of a run config, as Markdown.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Print the JSON schema of a run config, for completion in editors.

    \b
    Examples:
      resprout schema > resprout.schema.json
      resprout schema --result
      resprout schema --table > configs/keys.md
    """
    from resprout.configs.errors import BadInput

    if table and result:
        raise BadInput("--table is of a run config and --result of its result; give one of the two")
    if table:
        from resprout.configs.keys import table as page

        typer.echo(page(), nl=False)
        return
    from resprout.configs.result import RunResult
    from resprout.configs.schema import RunConfig

    model = RunResult if result else RunConfig
    typer.echo(json.dumps(model.model_json_schema(), indent=1, sort_keys=True))
