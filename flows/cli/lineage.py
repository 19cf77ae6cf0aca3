"""`resprout lineage`: the tree from a model version back to its source and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from resprout.infra.lineage import Node

WIDE = 1000


def lineage(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, an artifact digest, or a stage's run id."),
    ],
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All records as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Show what a model was made from: each stage, its digest, code, data with licence, and the source model.

    \b
    Examples:
      resprout lineage models:/smollm2-135m-resprout@candidate
      resprout lineage models:/smollm2-135m-resprout/1 --json
      resprout lineage models:/smollm2-135m-resprout@candidate --config configs/quickstart.yaml
    """
    from rich.console import Console

    from resprout.flows.place import find, open_place
    from resprout.infra.lineage import tree

    place = open_place(config, reference)
    found = find(place, reference)
    top = tree(place.store, found.record)
    if as_json:
        typer.echo(json.dumps({"reference": reference, **top.as_dict()}, sort_keys=True))
        return
    console = Console()
    if not console.is_terminal:
        # A tree folds long lines at the console's width; in a pipe nobody sees a width, so nothing is folded.
        console = Console(width=WIDE)
    console.print(_draw(top, found.version or reference), highlight=False)


def _draw(top: Node, title: str) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    drawn: set[str] = set()

    def add(branch: Tree, role: str, node: Node) -> None:
        record = node.record
        first = node.record_id not in drawn
        drawn.add(node.record_id)
        text = f"{role}: {record.stage} {record.content[:12]}"
        if first:
            commit = record.code.get("commit")
            text += f"  by {record.who} at {record.started}, resprout {record.code.get('resprout')}"
            text += (
                f" {commit[:12]}{' (dirty)' if record.code.get('dirty') == 'true' else ''}" if commit else ""
            )
        else:
            text += "  (above)"
        under = branch.add(escape(text))
        if not first:
            return
        for line in origin_lines(record.origin):
            under.add(escape(line))
        if record.licence:
            under.add(escape(f"licence {record.licence}"))
        for parent_role, parent in node.parents:
            add(under, parent_role, parent)

    root = Tree(escape(title))
    add(root, "model", top)
    return root


def origin_lines(origin: dict[str, Any] | None) -> list[str]:
    """For each source of an acquired artifact its address and what it was pinned to."""
    if not origin:
        return []
    sources = origin.get("sources")
    entries = sources if isinstance(sources, list) else [origin]
    return [f"from {entry.get('uri')}{_identity(entry)}" for entry in entries if isinstance(entry, dict)]


def _identity(entry: dict[str, Any]) -> str:
    """What a source was pinned to, in brackets: distribution, commit or version, and hashes of its files."""
    parts = []
    if entry.get("distribution"):
        parts.append(f"{entry['distribution']} {entry.get('version')}")
    elif entry.get("version"):
        parts.append(f"version {entry['version']}")
    if entry.get("revision"):
        parts.append(f"revision {entry['revision']}")
    if entry.get("commit"):
        parts.append(f"commit {entry['commit'][:12]}")
    hashes = entry.get("sha256") or {}
    if hashes:
        name, first = min(hashes.items())
        one = f"sha256 {first[:12]}"
        parts.append(one if len(hashes) == 1 else f"{len(hashes)} files, {name} {one}")
    elif entry.get("objects"):
        parts.append(f"{len(entry['objects'])} objects")
    return f" ({'; '.join(parts)})" if parts else ""
