"""`resprout validate`: is this config right? Answers in seconds, imports neither torch nor Prefect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resprout.configs.load import Loaded


def validate(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. prune.target.params_ratio=0.8")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved config as JSON.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no data and no server: half a second, no network.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Check a run config: keys, values, files, methods, and sections that need each other.

    Then open what it names, but no weights: the first rows of each data source go through their templates,
    those of the pool through the chat template, the text has to suffice, tokenizer and template have to be
    there, sources elsewhere are resolved, the store must be writable.

    \b
    Examples:
      resprout validate configs/quickstart.yaml
      resprout validate configs/quickstart.yaml prune.target.params_ratio=0.8
      resprout validate configs/quickstart.yaml --offline
    """
    from resprout.infra.imports import without_collector

    with without_collector():
        from resprout.configs.load import load
        from resprout.flows.check import check

    loaded = load(config, overrides or ())
    if offline:
        check(loaded)
    else:
        from resprout.flows.validate import probe

        check(loaded, probe)
    if as_json:
        typer.echo(json.dumps(loaded.config.public(), sort_keys=True))
        return
    typer.echo(f"{config} is a valid run config ({loaded.config.name})")
    if unopened := _unopened(loaded, offline):
        typer.echo(f"not opened: {', '.join(unopened)}")


def _unopened(loaded: Loaded, offline: bool) -> list[str]:
    """Sources that were not opened: data that is elsewhere; offline all data, and the store."""
    from resprout.flows.inputs import is_elsewhere, named_sources

    named = {address: wanted.purpose for _, address, wanted in named_sources(loaded.config)}
    data = [address for address, purpose in named.items() if purpose == "data"]
    if not offline:
        return [address for address in data if is_elsewhere(address)]
    models = [address for address, purpose in named.items() if purpose != "data" and is_elsewhere(address)]
    return [*models, *data, f"the store {loaded.config.infra.store.uri or loaded.home}"]
