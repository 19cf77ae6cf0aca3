"""`resprout diff`: compare two model versions: inputs, settings, code, libraries, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def diff(
    one: Annotated[
        str, typer.Argument(help="models:/name/3, models:/name@alias, an artifact digest, or any run's id.")
    ],
    other: Annotated[str, typer.Argument(help="The same of what it is compared with.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="By section what differs, with both values.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Compare config, data, plan, artifacts, metrics, code, libraries and machine of versions or runs.

    On a screen both values stand side by side; in a pipe each difference is one line. Exit code 0 whether
    they differ or not.

    \b
    Examples:
      resprout diff models:/smollm2-135m-resprout/1 models:/smollm2-135m-resprout/2
      resprout diff models:/smollm2-135m-resprout/1 models:/smollm2-135m-resprout@candidate
      resprout diff models:/smollm2-135m-resprout/1 models:/smollm2-135m-resprout/2 --json
    """
    from resprout.flows.audit.diff import differences, lines, side, tables
    from resprout.flows.audit.lineage import lineage_of, read_results
    from resprout.flows.audit.render import console, json_line
    from resprout.flows.workspace import named, open_workspace

    workspace = open_workspace(config, one, read_only=True)
    lineages = [lineage_of(workspace, named(workspace, reference)) for reference in (one, other)]
    a, b = (side(lineage, read_results(workspace.store, lineage)) for lineage in lineages)
    if as_json:
        found = {"a": one, "b": other, "differences": differences(a, b)}
        typer.echo(json_line(found))
        return
    shown = console()
    if not shown.is_terminal:
        for line in lines(a, b):
            typer.echo(line)
        return
    for table in tables(a, b):
        shown.print(table, highlight=False)
