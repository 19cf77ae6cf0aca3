"""`resprout up`: the one-machine stack."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resprout.configs.errors import BadInput, StageFailed

if TYPE_CHECKING:
    from resprout.configs.infrastructure import InfraConfig
    from resprout.infra.stack.stack import ServiceStatus

COMMAND = "resprout up"
CLI = (sys.executable, "-m", "resprout.flows.cli.main")


def up(
    settings: Annotated[Path | None, typer.Argument(help="YAML with an infra section.")] = None,
    show_status: Annotated[bool, typer.Option("--status", help="Only show the state of each part.")] = False,
    stop: Annotated[bool, typer.Option("--down", help="Stop everything; runs can go on later.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of stdout: the parts as JSON.")] = False,
) -> None:
    """Start and supervise Prefect, MLflow, a worker and the webhook relay on this machine.

    Everything listens on loopback and keeps its data below the data folder (RESPROUT_HOME). Prefect's pages
    ask for a password, which is the line in the file prefect/auth there. The ports are
    infra.stack.prefect_port (4200), infra.stack.mlflow_port (5000) and infra.relay.port (8300). A part that
    dies is started again; after a crash of all of them the same command goes on. With settings that changed,
    the parts concerned start again. Exit code 1: a part is not healthy.

    \b
    Examples:
      resprout up
      resprout up settings.yaml
      resprout up --status --json
    """
    from resprout.configs.load import load_infra
    from resprout.infra.stack.stack import Stack, down

    infra, home = load_infra(settings)
    if show_status and stop:
        raise BadInput("--status and --down were both given; give one of them")
    if stop:
        stopped = down(home)
        sys.stderr.write(f"stopped the stack of {home}\n" if stopped else f"no stack of {home} is running\n")
        return
    stack = Stack(infra, home, (*CLI, "relay"))
    if not show_status and not stack.up(lambda: _settle(infra, home)):
        _say_whom_to_tell(infra, home)
        sys.stderr.write("everything is up already\n")
    parts = stack.status()
    _show(parts, home)
    for service, holder in stack.strangers():
        sys.stderr.write(f"at {service.url} answers {holder}, which is not of the data folder {home}\n")
    if as_json:
        sys.stdout.write(json.dumps({"home": str(home), "parts": [asdict(part) for part in parts]}) + "\n")
    if not all(part.healthy for part in parts):
        raise typer.Exit(StageFailed.exit_code)


def _settle(infra: InfraConfig, home: Path) -> None:
    """Set the work pool's limit, the automations and the triggers of the rules on the servers."""
    import os
    import subprocess

    from resprout.infra.environment import prepare
    from resprout.infra.stack.services import in_the_stack, relay_url, variables

    inside = in_the_stack(infra)
    prepare(inside, home)
    from resprout.flows.reach import automate
    from resprout.infra.prefect.server import ensure_pool

    ensure_pool(infra.stack.pool, infra.stack.run_limit)
    automate(infra, COMMAND)
    if inside.relay.rules is None:
        return
    plain, secret = variables(inside, home)
    done = subprocess.run(
        [*CLI, "triggers", "apply", "--url", f"{relay_url(infra)}/webhooks/mlflow"],
        env={**os.environ, **plain, **secret},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sentence = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
        raise (BadInput if done.returncode == BadInput.exit_code else StageFailed)(sentence)


def _say_whom_to_tell(infra: InfraConfig, home: Path) -> None:
    """Set up notices, which needs a block that someone may have saved since."""
    if infra.prefect.notify is None:
        return
    from resprout.infra.environment import prepare
    from resprout.infra.stack.services import in_the_stack

    prepare(in_the_stack(infra), home)
    from resprout.flows.reach import automate

    automate(infra, COMMAND)


def _show(parts: list[ServiceStatus], home: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from resprout.infra.prefect.auth import FILE

    table = Table(box=None, pad_edge=False)
    for column in ("part", "health", "pid", "up", "url"):
        table.add_column(column)
    for part in parts:
        health = "healthy" if part.healthy else f"not healthy ({part.state})"
        table.add_row(
            part.title, health, str(part.pid or ""), f"{part.seconds:.0f} s" if part.pid else "", part.url
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(f"logs and data: {home}", soft_wrap=True, highlight=False)
    console.print(
        f"password of Prefect's pages: the line in {home / 'prefect' / FILE}", soft_wrap=True, highlight=False
    )
