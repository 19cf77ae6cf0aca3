"""`resprout rows`: the rows that a finished run selected, each with the reason why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def rows(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, digest of an export or a report, run id."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="New JSONL file to write the rows to; default: only list."),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(help="Which of several that were compared, say random:18; default: the run's own."),
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="With the rows that were not selected, and why not.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Write the rows that recovery trained on as JSONL, each with the reason why it was selected.

    A line holds the row as it was trained on, where it stood in the source, and what decided: cluster,
    divergence (`jsd`), `efficiency`, concepts, reason. Without --to the selections are listed that the
    run made. `select: {method: full, pool: [{source: FILE}]}` recovers another model on them.

    \b
    Examples:
      resprout rows models:/smollm2-135m-resprout@candidate
      resprout rows models:/smollm2-135m-resprout@candidate --to rows.jsonl
      resprout rows models:/smollm2-135m-resprout@candidate --to all.jsonl --refused
    """
    from resprout.flows.audit.render import json_line

    found, lines = _rows(reference, to, selection, refused, config)
    for line in [json_line({**found, "status": "done", "exit_code": 0})] if as_json else lines:
        typer.echo(line)


def _rows(
    reference: str, to: Path | None, wanted: str | None, refused: bool, config: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """All that was written as plain data, and as lines."""
    from resprout.configs.errors import BadInput
    from resprout.flows.recorded_run import recorded_run
    from resprout.flows.selected_rows import read_rows, read_summary, selections
    from resprout.flows.workspace import named, open_workspace
    from resprout.tasks.report.selection import selection_sentence

    if to is not None and to.exists():
        raise BadInput(f"{to} is there already; give a new file in --to")
    workspace = open_workspace(config, reference, read_only=True)
    made = selections(recorded_run(workspace, named(workspace, reference)), workspace.store)
    name = wanted or next(iter(made))
    if name not in made:
        raise BadInput(f"this run made no selection {name}; it made {', '.join(made)}")
    summaries = {one: read_summary(workspace.store, held) for one, held in made.items()}
    found: dict[str, Any] = {"reference": reference, "selections": summaries}
    if to is None:
        return found, [f"{one}  {selection_sentence(summary)}" for one, summary in summaries.items()]
    count = 0
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("x", encoding="utf-8") as file:
            for row in read_rows(workspace.store, made[name], refused):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise BadInput(
            f"the rows cannot be written to {to} ({error.strerror}); give a file in --to that can be made"
        ) from None
    found |= {"selection": name, "to": str(to), "rows": count}
    return found, [f"{name}, {count:,} rows: {to}"]
