"""`resprout runs`: the flow runs of a server, or of this home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

SHORT = 8
"""Digits of an id in the table."""


def runs(
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that failed or crashed.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON list, with whole ids.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config or settings whose infra to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """List runs, newest first: name, state, start, duration, deployment or config file, id.

    Of the server in infra.prefect.api_url (or PREFECT_API_URL), else of this data folder: its stack and its
    command lines. Scheduled runs that are not due yet are left out.

    \b
    Examples:
      resprout runs
      resprout runs --failed --limit 5
      resprout runs --config settings.yaml --json
    """
    from resprout.flows.cli.watching import servers_of

    with servers_of(config, debug) as servers:
        from resprout.infra.prefect.run_control import listed

        found = [row for one in servers for row in _rows(one.client, listed(one.client, failed, limit))]
    if len(servers) > 1:
        found = sorted(found, key=lambda row: row["started"] or "", reverse=True)[:limit]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo("no run failed" if failed else "no run yet")
        return
    _show(found)


def _rows(client: SyncPrefectClient, found: list[FlowRun]) -> list[dict[str, Any]]:
    from resprout.infra.prefect.run_control import origins

    known = origins(client, found)
    return [
        {
            "id": str(run.id),
            "name": run.name,
            "state": run.state.name if run.state else "",
            "started": run.start_time.isoformat() if run.start_time else None,
            "seconds": round(run.estimated_run_time.total_seconds(), 1),
            "config": known[run.id],
        }
        for run in found
    ]


def _show(found: list[dict[str, Any]]) -> None:
    from datetime import datetime

    from rich.markup import escape
    from rich.table import Table

    from resprout.flows.cli.forecast import duration, page

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "state", "started", "took", "config", "id"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("started", "took", "id"))
    for one in found:
        started = one["started"] and f"{datetime.fromisoformat(one['started']).astimezone():%Y-%m-%d %H:%M}"
        took = duration(one["seconds"]) if started else ""
        texts = (one["name"], one["state"], started or "", took, Path(one["config"]).name, one["id"][:SHORT])
        table.add_row(*map(escape, texts))
    page().print(table)
