"""`resprout why`: why a stage of a run was found in the cache, or ran."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resprout.flows.why import Explanation


def why(
    run: Annotated[
        str, typer.Argument(help="models:/name/3, models:/name@alias, or the id of an MLflow run.")
    ],
    stage: Annotated[str, typer.Argument(help="A stage as the run names it, e.g. 'evaluate pruned'.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Show whether a stage of a run was found or ran, the nearest earlier record, and what differs from it.

    What `resprout plan` says before a run, this says of one that ended, also of one that failed later.

    \b
    Examples:
      resprout why models:/smollm2-135m-resprout@candidate recover
      resprout why models:/smollm2-135m-resprout/1 "evaluate pruned" --config configs/quickstart.yaml
      resprout why models:/smollm2-135m-resprout/1 export --json
    """
    from resprout.flows.audit.render import json_line
    from resprout.flows.cli.forecast import page
    from resprout.flows.why import explain
    from resprout.flows.workspace import named, open_workspace

    workspace = open_workspace(config, run, read_only=True)
    found = explain(workspace, named(workspace, run), stage)
    if as_json:
        typer.echo(json_line(found.as_dict()))
        return
    shown = page()
    for line in _lines(found):
        shown.print(line, markup=False)


def _lines(found: Explanation) -> Iterator[str]:
    from resprout.flows.audit.render import printable
    from resprout.flows.cli.forecast import duration

    record, near = found.record, found.nearest
    run = printable(f"run {found.run_name} ({found.run_id})")
    maker = f" by run {found.maker}" if found.maker else ""
    made = f"record {found.record_id}, {record.started}, {duration(record.seconds)}"
    if found.found:
        yield f"{found.label}: found in the cache by {run}; nothing of its key differs"
        yield f"made{maker}: {made}"
        return
    yield f"{found.label}: ran in {run}"
    yield f"made: {made}"
    if near is None:
        yield "no earlier record of this stage is in the store: this was its first run there"
        return
    yield f"nearest earlier record{maker}: {near.record_id}, {near.record.started}"
    if not near.differences:
        yield "nothing of its key differs: the store no longer had that artifact whole"
        return
    yield "what differs from it:"
    for one in near.differences:
        yield printable(f"  {one}")
    behind: dict[str, list[str]] = {}
    for cause in found.causes:
        behind.setdefault(str(cause.difference), []).append(cause.stage)
    if behind:
        yield "what differs behind its inputs:"
    for words, stages in behind.items():
        yield printable(f"  {words} ({', '.join(sorted(stages))})")
