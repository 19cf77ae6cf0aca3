"""`resprout relocate`: tell MLflow where a moved home is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def relocate(
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Let the addresses in the home's own MLflow database lead to where the home is now.

    resprout itself needs none of this: it finds a moved home's files by their digests. MLflow loads a version
    from the address that it noted when the version was made, which no call of MLflow changes; where its
    database is in the home it is changed there. In a copied home that is the copy's; the original stays.

    \b
    Examples:
      resprout relocate
      resprout relocate --config configs/quickstart.yaml
      resprout relocate --config settings.yaml
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.workspace import open_workspace
    from resprout.infra.environment import ARTIFACTS
    from resprout.infra.retention.mlflow_data import Database

    workspace = open_workspace(config, "a moved home", read_only=True)
    tracker, store = workspace.tracker, workspace.store
    if tracker.config.tracking_uri is not None:
        raise BadInput(
            f"MLflow at {tracker.shown_uri} is not the home's own database, and it has no call that changes "
            "the source of a version; `resprout verify` finds the bytes by digest and shows where to load "
            "them from"
        )
    here = tracker.files.address
    in_home = store.root_uri == here.removesuffix(ARTIFACTS) + "store"
    roots: dict[str, str] = {}
    for old in sorted({one.artifact_location for one in tracker.client.search_experiments()}):
        if tracker.files.here(old) == here != old:
            roots[old] = here
            # A store that lay elsewhere did not move with the home.
            if in_home:
                roots[old.removesuffix(f"/{ARTIFACTS}") + "/store"] = store.root_uri
    if not roots:
        typer.echo(f"{workspace.home} is where MLflow's database says; nothing is to be changed")
        return
    database = Database(tracker.uri)
    try:
        changed = database.move(roots)
    finally:
        database.close()
    moved = ", ".join(old for old in roots if old.endswith(f"/{ARTIFACTS}"))
    typer.echo(f"{changed} addresses in {tracker.shown_uri} that began with {moved} lead to {here} now")
