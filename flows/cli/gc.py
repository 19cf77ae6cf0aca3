"""`resprout gc`: what no one needs any more, and its removal."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from resprout.infra.retention.gc import CollectionPlan, Inventory


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it nothing is changed.")] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All digests as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Say what the store keeps and why, and what could go; with --delete let it go.

    Kept is, with the whole lineage behind it: every registered version; what carries the tag resprout.hold (a
    version, a registered model, a run); what a run that is at work relies on; what runs of the last
    infra.retention.keep_days made or used, however they ended; what is younger than
    infra.retention.grace_hours. Seals and ledgers stay for ever. Checkpoints go where their stage is finished
    or they are older than infra.retention.checkpoint_days. Runs may go on meanwhile.

    \b
    Examples:
      resprout gc
      resprout gc --json | python -m json.tool
      resprout gc --delete --config configs/quickstart.yaml
    """
    from resprout.configs.load import load_infra
    from resprout.flows.cli.display import bar
    from resprout.flows.workspace import open_workspace
    from resprout.infra.retention.gc import Collector, plan_collection, take_inventory
    from resprout.infra.retention.gc_roots import RootFinder
    from resprout.infra.retention.stale_checkpoints import drop_checkpoints, stale_checkpoints
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.named_models import drop_dangling

    workspace = open_workspace(config, "what gc looks for")
    kept = load_infra(config)[0].retention
    locks = LeaseLockManager(workspace.store.driver)
    try:
        finder = RootFinder(workspace.store, workspace.tracker, locks, kept.keep_days)
        inventory = take_inventory(workspace.store)
        planned = plan_collection(inventory, finder.find(), kept.grace_hours * 3600)
        going = sorted(step.record for step in planned.steps if step.record is not None)
        stale = stale_checkpoints(workspace.store, locks, kept.checkpoint_days)
        if not delete:
            _say(_summary(planned, inventory, finder.removed, planned.freed, going, stale), as_json)
            return
        dropped: dict[str, int] = {}
        with bar("gc") as progress:
            collector = Collector(workspace.store, locks, inventory, finder.find, progress, finder.sealed())
            try:
                collector.run(planned)
                dropped = drop_checkpoints(workspace.store, locks, stale)
            finally:
                # Also where it was stopped half way: what was deleted stays deleted.
                deleted = {digest: planned.freed[digest] for digest in collector.deleted}
                summary = _summary(planned, inventory, finder.removed, deleted, collector.records, dropped)
                drop_dangling(workspace.home)
                _say({**summary, "deleted": True}, as_json)
    finally:
        locks.close()


def _summary(
    planned: CollectionPlan,
    inventory: Inventory,
    removed: Mapping[str, set[str]],
    freed: Mapping[str, int],
    records: Collection[str],
    checkpoints: Mapping[str, int],
) -> dict[str, Any]:
    """Artifacts and records that are kept, and those that are freed; checkpoints by their stage's key."""
    there = {ref: named & inventory.ages.keys() for ref, named in removed.items()}
    return {
        "deleted": False,
        "freed_bytes": sum(freed.values()) + sum(checkpoints.values()),
        "artifacts": dict(sorted(freed.items())),
        "checkpoints": dict(sorted(checkpoints.items())),
        "records": sorted(records),
        "kept": dict(sorted(planned.kept.items())),
        "spared": len(planned.freed) - len(freed),
        "removed": {
            ref: "kept" if named.isdisjoint(records) else "freed"
            for ref, named in sorted(there.items())
            if named
        },
        "strays": inventory.strays,
    }


def _say(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for reason, count in sorted(summary["kept"].items(), key=lambda item: -item[1]):
        typer.echo(f"kept for {reason}: {count} artifacts")
    if summary["spared"]:
        typer.echo(f"kept, because they were needed again or gc was stopped: {summary['spared']} artifacts")
    for reference, fate in summary["removed"].items():
        typer.echo(f"removed from the registry: {reference}, {fate}")
    if strays := summary["strays"]:
        typer.echo(f"left alone, because no store wrote them: {len(strays)} objects, such as {strays[0]}")
    verb = "freed" if summary["deleted"] else "would be freed (--delete does it)"
    stages = len(summary["checkpoints"])
    also = f" and the checkpoints of {stages} stage{'s' * (stages != 1)}" if stages else ""
    mb = summary["freed_bytes"] / 1e6
    typer.echo(f"{verb}: {len(summary['artifacts'])} artifacts{also}, {mb:,.1f} MB")
