"""`resprout restore`: a backup into an empty store and an empty MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def restore(
    place: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix of the backup.")],
    endpoint_url: Annotated[
        str | None, typer.Option(help="Endpoint of that bucket; default: that of infra.store.")
    ] = None,
    artifacts_to: Annotated[
        str | None,
        typer.Option(help="New s3://bucket/prefix for files of runs that lay in a bucket outside the store."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was restored as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Bring a backup back into the store and the MLflow that the settings name; both must be empty.

    They may be elsewhere than they were: addresses in MLflow's tables that begin with the old places get the
    new ones, run ids and versions stay. Every object is hashed on the way and every row compared; then all of
    it is checked as by `resprout verify --all`, with exit code 4 where that finds a fault. Where MLflow is a
    server, infra.stack.mlflow_database_url names its new database. Files of runs that lay in a bucket outside
    the store go where --artifacts-to says, never back to where they lay. A restore that was cut off goes on
    when it is given again.

    \b
    Examples:
      resprout restore /mnt/backup/resprout
      resprout restore s3://other-bucket/resprout --config configs/quickstart.yaml
      resprout restore s3://copy/x --artifacts-to s3://new-bucket/mlflow --json
    """
    from resprout.configs.load import load_infra
    from resprout.flows.cli.display import bar
    from resprout.infra.environment import prepare
    from resprout.infra.provenance.timestamp import Authority
    from resprout.infra.retention.backup import open_backup, read_statement, require_apart
    from resprout.infra.retention.mlflow_data import Database, database_address
    from resprout.infra.retention.restore import Restore
    from resprout.infra.store.store import ArtifactStore

    infra, home = load_infra(config)
    source = open_backup(place, infra.store, endpoint_url)
    store = ArtifactStore.from_config(infra.store, home, infra.proof)
    # Before a folder or a database is made for nothing.
    read_statement(source, store.signer)
    require_apart(store, source)
    prepare(infra, home)
    # MLflow reads its environment when it is imported, so these come after `prepare`.
    from resprout.flows.audit.verification import examine_all
    from resprout.flows.workspace import Workspace
    from resprout.infra.mlflow.tracking import Tracker

    tracker = Tracker(infra.mlflow, home)
    tracker.connect()
    store.ensure_writable()
    database = Database(database_address(infra, tracker, home))
    restored = Workspace(store, tracker, home, Authority.from_config(infra.proof))
    try:
        with bar("restore") as progress:
            statement = Restore(
                source,
                store,
                tracker,
                database,
                home,
                progress,
                artifacts_to,
                verify=lambda: examine_all(restored).problems,
            ).run()
    finally:
        database.close()
    about, by = statement.predicate, statement.signed_by
    signed = f"signed by {', '.join(by)}" if by else "signed by no known key"
    if as_json:
        typer.echo(json.dumps({**about, "signed_by": by}))
        return
    objects, rows, made = about["objects"], sum(about["rows"].values()), about["made"]
    typer.echo(
        f"{objects} objects and {rows} rows of {made} are here again: `verify --all` holds, and every row "
        f"has its values; {signed}"
    )
