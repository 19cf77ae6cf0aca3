"""`resprout alias`: point an alias at a version so that the ledger knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def alias(
    reference: Annotated[str, typer.Argument(help="models:/name/3, or models:/name@alias.")],
    name: Annotated[str, typer.Argument(help="The alias that is to point there.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away from it instead.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Point an alias at a version that resprout registered, or take it away, and say so in the ledger.

    What is moved in MLflow itself works as well, but `verify` calls it moved by hand.

    \b
    Examples:
      resprout alias models:/smollm2-135m-resprout/1 champion
      resprout alias models:/smollm2-135m-resprout@candidate champion --config configs/quickstart.yaml
      resprout alias models:/smollm2-135m-resprout/1 champion --remove
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.workspace import find, open_workspace, parts
    from resprout.infra.provenance.ledger import Ledger, replay
    from resprout.infra.provenance.mlflow_state import locations
    from resprout.infra.store.lease import LeaseLockManager

    if not reference.startswith("models:/"):
        raise BadInput(f"'{reference}' is no model version; give models:/name/3 or models:/name@alias")
    workspace = open_workspace(config, reference)
    found = find(workspace, reference)
    model, number = found.name or "", found.number or ""
    ledger, locks = Ledger(workspace.store, model), LeaseLockManager(workspace.store.driver)
    # As a run does while it registers: an act and its record belong together.
    locks.acquire_lock(f"register {model}", f"alias {name}")
    try:
        expected = replay(ledger.writable())
        asked = parts(reference)[1]
        if asked and expected.aliases.get(asked) != number:
            stated = expected.aliases.get(asked)
            raise BadInput(
                f"{reference} is version {number} in MLflow, but {stated} in the ledger: it was moved by "
                "hand; name the version by its number"
            )
        if number not in expected.versions:
            raise BadInput(
                f"version {number} of {model} is not in the ledger, so no alias can be stated for it; run "
                "its config again, or set the alias in MLflow"
            )
        change: dict[str, Any] = {"version": None if remove else number, "tags": {}, "alias": name}
        ledger.append(None, locations(workspace.tracker, workspace.store.root_uri), change=change)
        if remove:
            workspace.tracker.drop_alias(model, name, number)
        else:
            workspace.tracker.point_alias(model, name, number)
        aliases = {name: None if remove else number}
        ledger.append(None, locations(workspace.tracker, workspace.store.root_uri), aliases=aliases)
    finally:
        locks.close()
    done = "no longer points" if remove else "points"
    typer.echo(f"{model}@{name} {done} at version {number}, and the ledger says so")
