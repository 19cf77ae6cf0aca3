"""`resprout cancel`: stop a flow run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cancel(
    run: Annotated[str, typer.Argument(help="Name or id of a flow run, or how its id begins.")],
    config: Annotated[Path | None, typer.Option(help="Run config or settings whose infra to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Stop a run; its finished stages are kept, and a later run finds them in the cache.

    A deployed run is stopped by its worker, one that this machine's command line started by SIGTERM.
    One that waits for its time does not begin.

    \b
    Examples:
      resprout cancel "quickstart 2026-11-28 19:02:41"
      resprout cancel 0ac3f1
      resprout cancel 0ac3f1 --config settings.yaml
    """
    from resprout.flows.cli.watching import servers_of

    with servers_of(config, debug) as servers:
        from resprout.infra.prefect import run_control

        typer.echo(run_control.cancel(*run_control.find_among(servers, run)))
