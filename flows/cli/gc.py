"""`resprout gc`: what nobody needs any more, and its removal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it nothing is changed.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All digests as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Say what the store keeps and why, and what could go; with --delete let it go.

    Kept is, with the whole lineage behind it: every registered version; what carries the tag resprout.hold (a
    version, a registered model, a run); what a run that is at work relies on; what runs of the last
    infra.retention.keep_days made or used; what is younger than infra.retention.grace_hours. Runs may go on
    meanwhile.

    \b
    Examples:
      resprout gc
      resprout gc --json | python -m json.tool
      resprout gc --delete --config configs/quickstart.yaml
    """
    from resprout.configs.load import load_infra
    from resprout.flows.cli.bar import bar
    from resprout.flows.place import open_place
    from resprout.infra.retention.collect import Collector
    from resprout.infra.retention.inventory import take
    from resprout.infra.retention.needs import Look
    from resprout.infra.retention.plan import plan
    from resprout.infra.store.lease import LeaseLockManager

    place = open_place(config, "what gc looks for")
    kept = load_infra(config)[0].retention
    locks = LeaseLockManager(place.store.driver)
    try:
        look = Look(place.store, place.tracker, locks, kept.keep_days)
        inventory = take(place.store)
        planned = plan(inventory, look.needs(), kept.grace_hours * 3600)
        spent = look.spent_seals(planned.records)
        gone: list[str] = []
        if delete:
            with bar("gc") as progress:
                collector = Collector(place.store, locks, inventory, look.needs, progress)
                try:
                    collector.run(planned, spent)
                finally:
                    gone = collector.deleted
    finally:
        locks.close()
    freed = {digest: planned.freed[digest] for digest in gone} if delete else planned.freed
    if as_json:
        said = {
            "deleted": delete,
            "freed_bytes": sum(freed.values()),
            "artifacts": dict(sorted(freed.items())),
            "records": sorted(step.record for step in planned.steps if step.record is not None),
            "seals": spent,
            "kept": dict(sorted(planned.kept.items())),
        }
        typer.echo(json.dumps(said))
        return
    for reason, count in sorted(planned.kept.items(), key=lambda item: -item[1]):
        typer.echo(f"kept for {reason}: {count} artifacts")
    verb = "freed" if delete else "would be freed (--delete does it)"
    typer.echo(f"{verb}: {len(freed)} artifacts, {sum(freed.values()) / 1e6:,.1f} MB")
