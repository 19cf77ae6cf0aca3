"""`resprout logs`: states and log lines of a flow run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def logs(
    run: Annotated[str, typer.Argument(help="Name or id of a flow run, or how its id begins.")],
    keep_on: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config or settings whose infra to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Show the states and log lines of a run, with --follow to its end; Ctrl-C stops watching, not the run.

    With --follow the exit code is the run's: 0 done, 1 failed, 3 gate not passed, 130 cancelled. A run of a
    command line logs to its terminal, so that only its states are known.

    \b
    Examples:
      resprout logs "quickstart 2026-11-28 19:02:41"
      resprout logs 0ac3f1 --follow
      resprout logs 0ac3f1 --config settings.yaml
    """
    from resprout.flows.cli.watching import servers_of, watch

    with servers_of(config, debug) as servers:
        from resprout.infra.prefect.run_control import find_among, follow

        client, found = find_among(servers, run)
        if keep_on:
            watch(client, found)
            return
        for line in follow(client, found, until_end=False):
            typer.echo(line)
    if found.deployment_id is None:
        typer.echo("its log lines went to the terminal that it was started in", err=True)
