"""`resprout report`: the report of a run, or several runs on one page, written to a folder or opened."""

from __future__ import annotations

import shutil
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resprout.flows.workspace import Workspace


def report(
    references: Annotated[
        list[str],
        typer.Argument(help="models:/name/3, models:/name@alias, or an MLflow run id; several are compared."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write report.html to, or comparison.html where there are several; default: one "
            "below the data folder."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the HTML in a browser.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Write the report of the run that made a model version, or one page that compares several runs.

    \b
    Examples:
      resprout report models:/smollm2-135m-resprout@candidate
      resprout report models:/smollm2-135m-resprout@candidate --open
      resprout report models:/smollm2-135m-resprout/1 models:/smollm2-135m-resprout/2 --output /tmp/report
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.compare_reports import compare_references
    from resprout.flows.workspace import named, open_workspace

    workspace = open_workspace(config, references[0], read_only=True)
    references = [named(workspace, one) for one in references]
    several = len(references) > 1
    digest, called = ("", "comparison") if several else _report(workspace, references[0])
    folder = output or workspace.home / "reports" / called
    page = folder / ("comparison.html" if several else "report.html")
    try:
        if several:
            text = compare_references(workspace, references)
            folder.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        else:
            with workspace.store.open(digest) as kept:
                folder.mkdir(parents=True, exist_ok=True)
                for file in sorted(kept.iterdir()):
                    shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise BadInput(
            f"the report cannot be written to {folder} ({error.strerror}); give a folder in --output "
            "that can be made or written to"
        ) from None
    typer.echo(str(page))
    if show:
        webbrowser.open(page.resolve().as_uri())


def _report(workspace: Workspace, reference: str) -> tuple[str, str]:
    """Digest of the report on a version or of a run, and the name of the folder that it is copied to."""
    from resprout.configs.errors import BadInput
    from resprout.flows.compare_reports import run_of

    if reference.startswith("models:/"):
        version = workspace.tracker.version(reference)
        tags, called = version.tags, f"{version.name}-{version.version}"
    else:
        tags, called = run_of(workspace, reference).data.tags, reference
    if (digest := tags.get("resprout.report")) is None:
        raise BadInput(f"{reference} has no report; give a version or a run that `resprout run` made")
    return digest, called
