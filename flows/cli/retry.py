"""`resprout retry`: run a deployed flow run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def retry(
    run: Annotated[str, typer.Argument(help="Name or id of a flow run, or how its id begins.")],
    config: Annotated[Path | None, typer.Option(help="Run config or settings whose infra to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Schedule a deployed run that failed, crashed or was cancelled once more, as the same flow run.

    Finished stages are found in the cache. `resprout logs RUN --follow` watches it.

    \b
    Examples:
      resprout retry "quickstart 2026-11-28 19:02:41"
      resprout retry 0ac3f1
      resprout retry 0ac3f1 --config settings.yaml
    """
    from resprout.flows.cli.watching import servers_of

    with servers_of(config, debug) as servers:
        from resprout.infra.prefect import run_control

        typer.echo(run_control.retry(*run_control.find_among(servers, run)))
