"""`resprout export`: a finished run's model in any format, copied to a folder."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from resprout.configs.result import PushResult
    from resprout.flows.formats import Exported, FurtherFormat
    from resprout.flows.recorded_run import RecordedRun
    from resprout.flows.workspace import Workspace

WIDTH = 120
"""Columns of lines where stderr is no terminal."""
HUB_PATIENCE_SECONDS = 30.0
"""For how long a hub that is failing is asked again."""


def export(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, digest of an export or a report, run id."),
    ],
    to: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="New or empty folder to copy the model to; default: only list."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="hf, hf_layouts, gguf:Q4_K_M, ...; default: the registered one."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="hf://org/name to push it to, with HF_TOKEN; made where it is not there."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made is public.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code that came with the model, where the run did.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was copied as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
) -> None:
    """Copy the model of a finished run to a folder, in a format that the run made or in another.

    A format that is not there yet is made of the run's final model, with the run's calibration samples where
    it is one of few bits, and loaded by its stock tool before it counts; nothing else runs again. It is kept
    in the store like any artifact: `resprout lineage` and `verify` take its digest. Without --to or --push
    the formats are listed that are there. Nothing is pushed that did not pass its gate (exit code 3), or
    whose sources have licences that are unknown or forbid it.

    \b
    Examples:
      resprout export models:/smollm2-135m-resprout@candidate
      resprout export models:/smollm2-135m-resprout@candidate --to my-gguf --format gguf:Q4_K_M
      resprout export models:/smollm2-135m-resprout/1 --push hf://me/smollm2-small --public
    """
    try:
        found, lines = _export(reference, to, form, push, public, trust_remote_code, config, debug)
    except (Exception, KeyboardInterrupt) as error:
        if as_json:
            from resprout.configs.result import RunResult

            failed = RunResult(status="failed", exit_code=1)
            failed.fail(error)
            said = failed.model_dump(include={"status", "exit_code", "message"})
            typer.echo(json.dumps({"reference": reference, **said}))
        raise
    for remark in found["remarks"]:
        typer.echo(f"remark: {remark}", err=True)
    if as_json:
        from resprout.flows.audit.render import json_line

        lines = [json_line({**found, "status": "done", "exit_code": 0})]
    for line in lines:
        typer.echo(line)


def _export(
    reference: str, target: str | None, form: str | None, push: str | None, public: bool,
    trust_remote_code: bool, config: Path | None, debug: bool,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """All that was done as plain data, and as lines."""
    from resprout.configs.errors import BadInput
    from resprout.flows.formats import asked_format, copy_out, failed_bounds, made_by, refuse_unusable
    from resprout.flows.recorded_run import recorded_run
    from resprout.flows.workspace import named, open_workspace

    if target == "":
        raise BadInput("--to is empty; give a new or an empty folder")
    to = None if target is None else Path(target)
    form = None if form is None else asked_format(form)
    if to is not None:
        refuse_unusable(to)
    elif push is None and form is not None:
        raise BadInput(
            f"--format {form} alone would only fill the store; give --to FOLDER or --push hf://..."
        )
    workspace = open_workspace(config, reference)
    run = recorded_run(workspace, named(workspace, reference))
    there, failed = made_by(run, workspace.store), failed_bounds(run, workspace.store)
    if push is not None:
        from resprout.flows.push import check_push

        check_push(push, run.steps.credits, failed)
    remarks = [f"this model did not pass its gate: {', '.join(failed)}"] if failed else []
    found: dict[str, Any] = {"reference": reference, "formats": [one.as_dict() for one in there.values()]}
    lines = [f"{one.format}  {one.bytes / 1e6:.1f} MB" for one in there.values()]
    if to is not None or push is not None:
        wanted = form or next(iter(there), "")
        if not wanted:
            raise BadInput(f"the store no longer has an export of {reference}; say which to make by --format")
        one = there.get(wanted) or _made(run, wanted, workspace, config, trust_remote_code, debug)
        found |= {**one.as_dict(), "made_afterwards": wanted not in there}
        if wanted not in there and ":" in wanted:
            remarks.append(
                f"{wanted} was loaded and compared with the model, but not evaluated: the scores on its card "
                "are the model's before it was stored in few bits; quantize.formats has files judged"
            )
        lines = []
        if to is not None:
            typer.echo(f"copying {wanted}, {one.bytes / 1e6:.1f} MB, to {to}", err=True)
            found["to"] = str(copy_out(workspace.store, one, to))
            lines += _copied(one, to)
        if push is not None:
            typer.echo(f"pushing {wanted}, {one.bytes / 1e6:.1f} MB, to {push}", err=True)
            pushed = _pushed(workspace, one, push, f"{run.config.name}, {reference}", private=not public)
            found["pushed"] = pushed.model_dump(mode="json")
            how = "pushed" if pushed.changed else "nothing to push, it is there already"
            lines.append(f"{how}: {pushed.to} ({pushed.url})")
    elif not lines:
        lines = [f"the store no longer has an export of {reference}; --to FOLDER --format FORMAT makes one"]
    found["remarks"] = remarks
    return found, lines


def _pushed(workspace: Workspace, one: Exported, address: str, run: str, private: bool) -> PushResult:
    """The format on the hub; a hub that fails for a moment is asked again."""
    from resprout.flows.push import push_formats
    from resprout.infra.retry import retry_while_down

    return retry_while_down(
        lambda: push_formats(workspace.store, [one], address, run, private), HUB_PATIENCE_SECONDS
    )


def _made(
    run: RecordedRun, form: str, workspace: Workspace, config: Path | None, code: bool, debug: bool
) -> Exported:
    """The format, made by a flow of its own or found in the cache."""
    from rich.console import Console

    from resprout.configs.load import load_infra
    from resprout.flows.formats import FurtherFormat
    from resprout.flows.session import Session, end_on_signals
    from resprout.infra.environment import set_variables
    from resprout.infra.prefect.home_server import home_server

    wanted: FurtherFormat = FurtherFormat(run, workspace.store, form, code)
    infra, home = load_infra(config)
    set_variables(infra, home, debug)
    if not debug:
        warnings.simplefilter("ignore")
    session = Session()
    end_on_signals(session.interrupt)
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=WIDTH)
    with home_server(infra):
        from resprout.flows.cli.display import display_for
        from resprout.flows.export_again import export_again

        with display_for(console, infra.logs) as session.display:
            return export_again(wanted, workspace, session)


def _copied(one: Exported, folder: Path) -> list[str]:
    """What was copied where, its card, and how it is loaded."""
    from resprout.tasks.export.card import CARD
    from resprout.tasks.export.format import chats, usage

    return [
        f"{one.format}, {one.bytes / 1e6:.1f} MB: {folder}",
        f"model card: {folder / CARD}",
        f"lineage: resprout lineage {one.digest}",
        "",
        "load it:",
        *(f"  {line}" for line in usage(one.format, json.dumps(os.fspath(folder)), chats(folder))),
    ]
