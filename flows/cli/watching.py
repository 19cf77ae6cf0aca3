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


@contextmanager
def server_of(config: Path | None, debug: bool) -> Iterator[SyncPrefectClient]:
    """A client of the server that knows the runs of a config's infra, or of the environment."""
    from resprout.configs.load import load_infra
    from resprout.infra.environment import prepare

    infra, home = load_infra(config)
    prepare(infra, home, debug)
    from resprout.infra.prefect.run_control import runs_server

    with runs_server(infra) as client:
        yield client


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
