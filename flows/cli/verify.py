"""`resprout verify`: that no byte, tag or link of a version changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, an artifact digest, or a stage's run id."),
    ],
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The problems as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Hash every file behind a version again and hold records, manifests and tags against each other.

    Exit code 4 where a byte, a tag, a record or a link is not what it was.

    \b
    Examples:
      resprout verify models:/smollm2-135m-resprout@candidate
      resprout verify models:/smollm2-135m-resprout/1 --json
      resprout verify models:/smollm2-135m-resprout@candidate --config configs/quickstart.yaml
    """
    from resprout.configs.errors import BadInput, VerificationFailed
    from resprout.flows.place import find, open_place
    from resprout.infra.lineage import tree

    place = open_place(config, reference)
    found = find(place, reference)
    try:
        top = tree(place.store, found.record)
    except BadInput as error:
        raise VerificationFailed(f"the lineage of {reference} is broken: {error}") from None
    problems = []
    if top.record.content != found.digest:
        problems.append(
            f"tag resprout.digest says {found.digest}, but record {found.record} made {top.record.content}"
        )
    if found.source is not None and found.source.startswith(("s3://", "file://")):
        held = place.store.uri(top.record.content)
        if not found.source.startswith(held):
            problems.append(f"the version's source is {found.source}, but its artifact is at {held}")
    digests = sorted({node.record.content for node in top.walk()})
    for digest in digests:
        try:
            problems.extend(place.store.verify(digest))
        except BadInput as error:
            problems.append(str(error))
    if as_json:
        typer.echo(json.dumps({"reference": reference, "artifacts": len(digests), "problems": problems}))
    if problems:
        raise VerificationFailed(f"{reference}: " + "; ".join(problems))
    if not as_json:
        typer.echo(f"{reference}: {len(digests)} artifacts, every byte as published, every link holds")
