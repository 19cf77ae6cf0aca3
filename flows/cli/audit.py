"""`resprout audit`: all versions and verdicts, and what is at odds about them."""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resprout.flows.audit.table import AuditRow

WIDE = 200
COLUMNS = (
    "kind",
    "name",
    "version",
    "aliases",
    "at",
    "verdict",
    "sealed",
    "signed",
    "licences",
    "digest",
    "run",
    "problems",
    "remarks",
)


def audit(
    since: Annotated[
        str | None, typer.Option(help="Only what was registered or failed since then, as 2026-01-31.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV with a header.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 4 where anything is at odds.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """List every version and every failed gate, with broken links, missing signatures and licences at odds.

    Looks at listings, records and tags alone and hashes nothing; `verify` hashes.

    \b
    Examples:
      resprout audit --since 2026-01-01
      resprout audit --since 2026-01-01 --csv > audit.csv
      resprout audit --strict --config configs/quickstart.yaml
    """
    from resprout.configs.errors import BadInput, VerificationFailed
    from resprout.configs.load import load_infra
    from resprout.flows.audit.render import json_line
    from resprout.flows.audit.table import audit_rows
    from resprout.flows.workspace import open_workspace

    if as_csv and as_json:
        raise BadInput("--csv and --json are given together; ask for one form at a time")
    began = _moment(since)
    workspace = open_workspace(config, "the registry", read_only=True)
    rows = audit_rows(workspace, load_infra(config)[0].licences, began)
    odd = sum(bool(row.problems) for row in rows)
    if as_json:
        found = {"since": since, "rows": [row.as_dict() for row in rows], "at_odds": odd}
        typer.echo(json_line(found))
    elif as_csv:
        written = csv.writer(sys.stdout, lineterminator="\n")
        written.writerow(COLUMNS)
        written.writerows(_cells(row) for row in rows)
    else:
        _show(rows, odd)
    if strict and odd:
        raise VerificationFailed(
            f"{odd} of {len(rows)} rows are at odds; `resprout verify` says more of each"
        )


def _moment(text: str | None) -> datetime.datetime | None:
    from resprout.configs.errors import BadInput

    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"--since is '{text}'; give a date as 2026-01-31, or a time as 2026-01-31T12:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _cells(row: AuditRow) -> list[str]:
    """The row as CSV holds it: lists joined, and nothing that a spreadsheet takes for a formula."""
    found = row.as_dict()
    cells = [
        "; ".join(found[name]) if isinstance(found[name], list) else str(found[name]) for name in COLUMNS
    ]
    return [f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell for cell in cells]


def _show(rows: list[AuditRow], odd: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from resprout.flows.audit.render import printable

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(
        "what", "when", "verdict", "sealed", "signed", "licences", "at odds", box=None, pad_edge=False
    )
    for row in rows:
        name = f"{row.name} {row.version}" if row.kind == "version" else f"{row.kind} {row.name}"
        shown = f"{name}{f' ({chr(44).join(row.aliases)})' if row.aliases else ''}"
        sealed = "yes" if row.sealed else "no"
        licences, problems = ", ".join(row.licences), "\n".join(row.problems)
        cells = (shown, row.at[:16].replace("T", " "), row.verdict, sealed, row.signed, licences, problems)
        table.add_row(*map(printable, cells))
    console.print(table, highlight=False)
    for remark in sorted({f"{row.name} {row.version}: {one}" for row in rows for one in row.remarks}):
        console.print(printable(remark), highlight=False, soft_wrap=True)
    versions, runs = (_counted(sum(row.kind == kind for row in rows), kind) for kind in ("version", "run"))
    console.print(f"{versions}, {runs} that failed their gate, {odd} at odds", highlight=False)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
