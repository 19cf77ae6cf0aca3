"""`resprout backup`: store and MLflow to another place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def backup(
    place: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix to copy to.")],
    endpoint_url: Annotated[
        str | None, typer.Option(help="Endpoint of that bucket; default: that of infra.store.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was copied as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Copy the store and all of MLflow, rows and files, to a folder or a bucket; only what is new is copied.

    The place becomes a mirror: what the store no longer has, by gc or erasure, goes there too; for a history
    back up to several places in turn. Bytes are hashed on the way and held against the manifests; the list
    of all hashes is signed where infra.proof has a key. Runs may go on meanwhile, a gc may not: what a run
    ends or registers after the tables were read is left to the next backup. Where MLflow is a server,
    infra.stack.mlflow_database_url names its database.

    \b
    Examples:
      resprout backup /mnt/backup/resprout
      resprout backup s3://other-bucket/resprout --config configs/quickstart.yaml
      resprout backup s3://copy/x --endpoint-url https://minio.example:9000 --json
    """
    from resprout.configs.load import load_infra
    from resprout.flows.cli.display import bar
    from resprout.flows.workspace import open_workspace
    from resprout.infra.retention.backup import Backup, open_backup, require_apart
    from resprout.infra.retention.mlflow_data import Database, database_address
    from resprout.infra.store.lease import LeaseLockManager

    here = open_workspace(config, "what to back up")
    infra, home = load_infra(config)
    database = Database(database_address(infra, here.tracker, home))
    target = open_backup(place, infra.store, endpoint_url)
    require_apart(here.store, target)
    target.ensure_writable()
    locks = LeaseLockManager(here.store.driver)
    try:
        with bar("backup") as progress:
            counted = Backup(here.store, here.tracker, database, target, progress).run(locks)
    finally:
        locks.close()
        database.close()
    if as_json:
        typer.echo(json.dumps(vars(counted)))
        return
    typer.echo(
        f"{place}: {counted.objects} objects, {counted.bytes / 1e6:,.1f} MB, of which {counted.copied} "
        f"({counted.copied_bytes / 1e6:,.1f} MB) were copied now"
    )
