"""`resprout sign`: put a key's signature under a history from before there was one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def sign(
    adopt: Annotated[bool, typer.Option("--adopt", help="Sign; without it nothing is changed.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Verify everything, and say what no known key signed; with --adopt sign it.

    For a store that had no signing key until now. Records, seals and the statements beside them are signed
    by infra.proof.signing_key, and each ledger says so. The key then vouches for what is there, so who
    doubts it takes a new store instead. Exit code 4, and nothing signed, where verification finds a fault;
    what a known key signed must hold.

    \b
    Examples:
      resprout sign
      resprout sign --adopt
      resprout sign --adopt --config configs/quickstart.yaml
    """
    from resprout.configs.errors import BadInput, VerificationFailed
    from resprout.flows.audit.verification import examine_unsigned
    from resprout.flows.workspace import open_workspace
    from resprout.infra.provenance.adoption import adopt as sign_all
    from resprout.infra.provenance.adoption import find_unsigned
    from resprout.infra.provenance.mlflow_state import locations

    workspace = open_workspace(config, "what sign looks for")
    store = workspace.store
    if not store.signer.signs:
        raise BadInput("sign needs a key; give infra.proof.signing_key or infra.proof.signing_key_file")
    found, records = examine_unsigned(workspace)
    if found.problems:
        raise VerificationFailed(f"nothing was signed: {'; '.join(found.problems)}")
    what = find_unsigned(store, records)
    if adopt and what:
        sign_all(store, what, locations(workspace.tracker, store.root_uri))
    if as_json:
        typer.echo(json.dumps({"key": store.signer.own_id, "signed": adopt, **dataclasses.asdict(what)}))
        return
    if not what:
        typer.echo(f"{found.records} records, their seals and ledgers: a known key signed all of it")
        return
    verb = f"signed by key {store.signer.own_id}" if adopt else "would be signed (--adopt does it)"
    typer.echo(
        f"{verb}: {len(what.records)} records, {len(what.seals)} seals, {len(what.statements)} statements "
        f"beside them, and the ledgers of {', '.join(what.models) or 'no model'}"
    )
