"""`resprout verify`: that no byte, tag or link of a version changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    reference: Annotated[
        str | None,
        typer.Argument(help="models:/name/3, models:/name@alias, an artifact digest, or the id of a run."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every version and every sealed run instead of one reference.")
    ] = False,
    sample: Annotated[
        str | None,
        typer.Option(help="Hash only this share of the files, as 5%, each day others; all else is checked."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="SHA-256 of a ledger entry that verify printed before; it must still be there."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Hash every file behind a version again; hold records, signatures, tags, ledger and MLflow against each
    other.

    Exit code 4 where a byte, a tag, a metric, an alias, a record or a link is not what it was.

    \b
    Examples:
      resprout verify models:/smollm2-135m-resprout@candidate
      resprout verify models:/smollm2-135m-resprout/1 --json --config configs/quickstart.yaml
      resprout verify --all --sample 5%
    """
    from resprout.configs.errors import BadInput, VerificationFailed
    from resprout.configs.load import load_infra
    from resprout.flows.workspace import named, open_workspace

    if (reference is None) is not everything:
        raise BadInput("verify takes one reference, or --all and none; give models:/name@alias, or --all")
    if head is not None and not (reference or "").startswith("models:/"):
        raise BadInput("--head is a hash in the ledger of one model; give models:/name@alias with it")
    share = _share(sample)
    what = reference or "everything"
    workspace = open_workspace(config, what, read_only=True)
    from resprout.flows.audit.verification import examine, examine_all

    policy = load_infra(config)[0].licences
    found = (
        examine(workspace, named(workspace, reference), share, head, policy)
        if reference
        else examine_all(workspace, share, policy)
    )
    if as_json:
        typer.echo(json.dumps({"reference": what, **dataclasses.asdict(found)}))
    if found.problems:
        raise VerificationFailed(f"{what}: " + "; ".join(found.problems))
    if not as_json:
        typer.echo(
            f"{what}: {found.artifacts} artifacts of {found.records} records, every byte as published, every "
            "link holds"
        )
        for note in found.notes:
            typer.echo(note)


def _share(text: str | None) -> float:
    from resprout.configs.errors import BadInput

    if text is None:
        return 1.0
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.endswith("%") or not 0.0 < share <= 1.0:
        raise BadInput(f"--sample is '{text}'; give a share of the files as 5% (above 0, up to 100)")
    return share
