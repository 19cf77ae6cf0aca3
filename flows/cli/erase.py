"""`resprout erase`: the bytes of an artifact, or of one row of a data set, go, and that is on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def erase(
    digest: Annotated[str, typer.Argument(help="Artifact (64 hexadecimal digits), as `lineage` shows it.")],
    reason: Annotated[
        str, typer.Option(help="Why; it stands in the tombstone and wherever bytes are missed.")
    ],
    row: Annotated[
        str | None,
        typer.Option(help="Only what holds this row: its id, or a text in it of 12 characters."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase; without it nothing is changed.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All files as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Say which files would go; with --yes erase them from the store, this machine, MLflow and the reports.

    Of a data set go with it all text files of what came from it in which one of its rows stands, and copies
    of its files of rows, wherever they came from. With --row these are only the files in which that row
    stands; files are erased whole. Versions that lose a file of their export are named. Manifests and records
    stay, and a tombstone says what was erased, why, by whom and when, so `verify` finds it erased and not
    tampered with. What was erased is no cache hit, and is not kept again. What is under a legal hold is not
    erased.

    Not changed: the weights that were trained on the row, files that are no text (they are listed), older
    versions of objects in a versioned bucket, backups, and caches of other machines (run it there as well).

    \b
    Examples:
      resprout erase 4a7438d4... --reason "withdrawn by its owner"
      resprout erase 4a7438d4... --row 1705107e... --reason "request 17" --yes
      resprout erase 4a7438d4... --row "Jane Doe" --reason "request 18" --json
    """
    from resprout.flows.workspace import open_workspace
    from resprout.infra.retention.erase import execute_erasure, plan_erasure
    from resprout.infra.store.canonical import check_digest
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.named_models import drop_dangling

    workspace = open_workspace(config, check_digest(digest, "digest of an artifact"))
    found = plan_erasure(workspace.store, workspace.tracker, workspace.home, digest, row)
    if yes:
        locks = LeaseLockManager(workspace.store.driver)
        execute_erasure(workspace.store, workspace.tracker, locks, found, reason)
        drop_dangling(workspace.home)
    report = found.as_dict()
    if as_json:
        typer.echo(json.dumps({"erased": yes, **report}))
        return
    for one, paths in report["artifacts"].items():
        for path in paths:
            typer.echo(f"artifact {one}: {path}")
    for path in report["mlflow"]:
        typer.echo(f"MLflow run {path}")
    for path in report["local"]:
        typer.echo(path)
    if report["not_searched"]:
        typer.echo(f"not searched, because they are no text: {len(report['not_searched'])} files (--json)")
    others = sorted({path.partition("/")[0] for path in report["left_behind"]})
    for one in others:
        typer.echo(f"left behind, with the same bytes: files of {one}; `resprout erase {one}` erases it")
    for version, paths in report["breaks"].items():
        typer.echo(f"{version} loses {', '.join(paths)}, and may not load any more")
    count = sum(map(len, report["artifacts"].values())) + len(report["mlflow"]) + len(report["local"])
    typer.echo(f"{count} files {'erased' if yes else 'would be erased (--yes does it)'}")
