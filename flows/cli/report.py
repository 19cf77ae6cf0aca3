"""`resprout report`: the report of a run, written to a folder or opened."""

from __future__ import annotations

import shutil
import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def report(
    reference: Annotated[
        str, typer.Argument(help="models:/name/3, models:/name@alias, or an MLflow run id.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write report.html and report.md to; default: one below the data folder."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the HTML in a browser.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Write the report of the run that made a model version.

    \b
    Examples:
      resprout report models:/smollm2-135m-resprout@candidate
      resprout report models:/smollm2-135m-resprout@candidate --open
      resprout report models:/smollm2-135m-resprout/1 --output /tmp/report
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.workspace import RUN_ID, open_workspace

    workspace = open_workspace(config, reference, read_only=True)
    if reference.startswith("models:/"):
        version = workspace.tracker.version(reference)
        digest, called = version.tags.get("resprout.report"), f"{version.name}-{version.version}"
    elif RUN_ID.match(reference):
        digest, called = workspace.tracker.run(reference).data.tags.get("resprout.report"), reference
    else:
        raise BadInput(
            f"'{reference}' is no reference; give models:/name/3, models:/name@alias, or an MLflow run id"
        )
    if digest is None:
        raise BadInput(f"{reference} has no report; give a version or a run that `resprout run` made")
    output = output or workspace.home / "reports" / called
    with workspace.store.open(digest) as folder:
        try:
            output.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir()):
                shutil.copyfile(file, output / file.name)
        except OSError as error:
            raise BadInput(
                f"the report cannot be written to {output} ({error.strerror}); give a folder in --output "
                "that can be made or written to"
            ) from None
    typer.echo(str(output / "report.html"))
    if show:
        webbrowser.open((output / "report.html").resolve().as_uri())
