"""`resprout methods`: what a config may name, with the paper each comes from."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """List calibration, pruning, selection and recovery methods, and the evaluation tasks that ship.

    Of a criterion it says what units it scores and what that costs, of a pruning method also its layouts, its
    own first, with the name that it has in another; --json shows a method's settings as well.

    \b
    Examples:
      resprout methods
      resprout methods --json
      resprout methods | grep paser
    """
    from rich.console import Console
    from rich.table import Table

    from resprout.flows.catalog import catalog

    listed = catalog()
    if as_json:
        typer.echo(json.dumps(listed, sort_keys=True))
        return
    table = Table(
        "section", "name", "what it does", "source", "units", "cost", "layouts", box=None, pad_edge=False
    )
    for section, entries in listed.items():
        for entry in entries:
            units = ", ".join(entry.get("units", ()))
            names = entry.get("layouts", {}).items()
            layouts = ", ".join(one if name == entry["name"] else f"{one}: {name}" for one, name in names)
            cost = entry.get("cost", "")
            table.add_row(section, entry["name"], entry["summary"], entry["source"], units, cost, layouts)
    Console(width=200).print(table, highlight=False, soft_wrap=True)
