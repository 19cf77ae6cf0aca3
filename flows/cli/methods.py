"""`resprout methods`: what a config may name, in a list, or one method whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from resprout.flows.catalog import Description

WIDTH = 100
"""Columns of what is printed, on wider terminals and in pipes too."""


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method whole.")] = None,
    units: Annotated[str | None, typer.Option(help="Only what can prune these units, e.g. ffn.")] = None,
    formats: Annotated[bool, typer.Option(help="Families by the formats that can hold them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """List calibration, pruning, selection and recovery methods, and the evaluation tasks that ship.

    With a name, show all of it: source, units, layouts with the name that it has in each, its parts, what it
    needs and costs, settings with their defaults. Several kinds may have a method of one name.

    \b
    Examples:
      resprout methods
      resprout methods flap
      resprout methods --formats
    """
    from resprout.configs.errors import BadInput

    if formats:
        from resprout.tasks.export.support import table

        if name is not None or units is not None or as_json:
            raise BadInput("--formats prints one table of all families; give it alone")
        typer.echo(table())
        return
    from resprout.flows.catalog import catalog, describe, with_units

    if name is not None:
        if units is not None:
            raise BadInput("give the name of a method, of which all units are shown, or --units, not both")
        described = describe(name)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in described], sort_keys=True))
        else:
            _show(described)
        return
    listed = with_units(catalog(), units)
    if as_json:
        typer.echo(json.dumps(listed, sort_keys=True))
    else:
        _list(listed)


def _printed(parts: Sequence[Any]) -> None:
    """Print parts one below another, wrapped, and without the blanks that fill up their lines."""
    from rich.console import Console

    console = Console()
    width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    # Brackets in what is printed are no markup.
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _columns(first: int) -> Table:
    """A table of two columns, of which the second is wrapped."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=first, no_wrap=True)
    table.add_column(ratio=1)
    return table


def _list(listed: Mapping[str, list[dict[str, Any]]]) -> None:
    parts: list[Any] = []
    for section, entries in listed.items():
        table = _columns(22)
        for entry in entries:
            facts = "; ".join(
                fact
                for fact in (", ".join(entry.get("units", entry.get("types", ()))), entry["source"])
                if fact
            )
            table.add_row(
                f"  {entry['name']}", entry["summary"].rstrip(".") + (f" ({facts})" if facts else "")
            )
        parts += [f"{section}:", table, ""]
    _printed([*parts, "`resprout methods NAME` shows one whole: parts, layouts, cost, settings."])


def _show(described: Sequence[Description]) -> None:
    from rich.padding import Padding

    parts: list[Any] = []
    for one in described:
        table = _columns(14)
        for key, value in one.rows.items():
            table.add_row(f"  {key}", value)
        for place, (key, value) in enumerate(one.settings.items()):
            table.add_row("" if place else "  settings", f"{key} = {value}")
        about = ["", Padding("\n\n".join(map(_reflowed, one.about.split("\n\n"))), (0, 0, 0, 2))]
        parts += [
            *([""] if parts else []),
            f"{one.section}: {one.name}",
            table,
            *(about if one.about else ()),
        ]
    _printed(parts)


def _reflowed(paragraph: str) -> str:
    """Join each paragraph into one line, to be wrapped to the screen; keep equations and lists."""
    lines = paragraph.splitlines()
    plain = not any(line.startswith((" ", "- ", "|", "1.")) for line in lines)
    return " ".join(lines) if plain else paragraph
