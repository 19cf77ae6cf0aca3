"""`resprout hold`: a legal hold on a version, a registered model or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def hold(
    reference: Annotated[
        str, typer.Argument(help="models:/name/3, models:/name@alias, models:/name, or the id of a run.")
    ],
    reason: Annotated[str | None, typer.Option(help="Why it is held.")] = None,
    release: Annotated[bool, typer.Option("--release", help="Lift the hold.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Keep all that is behind a version, a model or a run from `gc`, whatever else becomes of it.

    A hold is the tag resprout.hold in MLflow, so it can be set and seen there too; `verify` lets it pass.

    \b
    Examples:
      resprout hold models:/smollm2-135m-resprout@candidate --reason "case 7"
      resprout hold models:/smollm2-135m-resprout --reason "audit of 2027"
      resprout hold models:/smollm2-135m-resprout --release
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.workspace import open_workspace
    from resprout.infra.retention.gc_roots import set_hold

    if release == bool(reason):
        raise BadInput("give either --reason TEXT, to hold, or --release, to lift the hold")
    workspace = open_workspace(config, reference)
    set_hold(workspace.tracker, reference, reason)
    typer.echo(f"{reference}: {'released' if release else f'held ({reason})'}")
