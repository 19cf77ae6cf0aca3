"""Flow runs on the terminal: the server that knows them, and one that is followed to its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from resprout.configs.errors import StoppedWatching

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from resprout.infra.prefect.run_control import RunsServer


@contextmanager
def servers_of(config: Path | None, debug: bool) -> Iterator[list[RunsServer]]:
    """The servers that know the runs of a config's infra, or of the environment; prints which they are."""
    from resprout.configs.load import load_infra
    from resprout.infra.environment import prepare

    infra, home = load_infra(config)
    prepare(infra, home, debug)
    from resprout.infra.prefect.run_control import runs_servers
    from resprout.infra.prefect.server import another_homes

    if note := another_homes(infra, home):
        typer.echo(f"not asked: {note}", err=True)
    with runs_servers(infra, home) as servers:
        typer.echo(f"asked: {' and '.join(one.title for one in servers)}", err=True)
        yield servers


def watch(client: SyncPrefectClient, run: FlowRun) -> None:
    """Print a run's states and log lines to its end; exits as the run did, where not with 0.

    Ctrl-C ends the watching alone.
    """
    from resprout.infra.prefect.run_control import exit_code, follow

    try:
        for line in follow(client, run):
            typer.echo(line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise StoppedWatching(
            f"stopped watching; the run goes on (resprout logs {run.id} --follow, resprout cancel {run.id})"
        ) from None
    if code := exit_code(client.read_flow_run(run.id).state):
        raise typer.Exit(code)
