"""A story as a tree on the terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resprout.flows.audit.facts import Facts
from resprout.flows.audit.printable import printable
from resprout.flows.audit.story import Story
from resprout.infra.licences import UNKNOWN
from resprout.infra.lineage import Node
from resprout.infra.store.record import Record
from resprout.tasks.core.mlflow_log import flat

if TYPE_CHECKING:
    from rich.tree import Tree

SHORT = 12
FIRST = ("export", "gate", "sparsified", "recovered", "pruned", "dense", "model", "plan", "calibration")
"""Roles in the order of a reader's questions: the model itself, why it passed, what it was held against."""


def draw(story: Story, facts: Facts, full: bool = False) -> Tree:
    """Each record once, with what is not as in the rest; `full` adds config, metrics, libraries, machine."""
    from rich.tree import Tree

    usual = usual_of(story)
    root = Tree(printable(story.title))
    for line in header(story, facts, usual):
        root.add(printable(line))
    drawn, licences = set[str](), story.licences()

    def add(branch: Tree, role: str, node: Node) -> None:
        drawn.add(node.record_id)
        under = branch.add(printable(f"{named(role, node)}{_differing(node.record, usual)}"))
        for line in origin_lines(node.record.origin):
            under.add(printable(line))
        if node.record_id in licences:
            under.add(printable(f"licence {licences[node.record_id]}"))
        for line in details(node, facts) if full else ():
            under.add(printable(line))
        again = []
        for parent_role, parent in sorted(node.parents, key=_reading_order):
            if parent.record_id in drawn:
                again.append(named(parent_role, parent))
            else:
                add(under, parent_role, parent)
        if again:
            under.add(printable(f"(above) {', '.join(again)}"))

    for role, top in story.tops:
        add(root, role, top)
    return root


def named(role: str, node: Node) -> str:
    """Role, stage and short digest."""
    stage = node.record.stage
    return f"{f'{role}: ' if role != stage else ''}{stage} {node.record.content[:SHORT]}"


def header(story: Story, facts: Facts, usual: dict[str, str]) -> Iterator[str]:
    """Verdict, when and by whom, code, licences of what it was made from."""
    if story.version is not None and story.version["aliases"]:
        yield f"aliases: {', '.join(story.version['aliases'])}"
    if facts.gate is not None:
        checks = [
            f"{one['name']} {one['value']:.4g} (bound {one['bound']:g})" for one in facts.gate["checks"]
        ]
        yield f"gate {facts.verdict}: {'; '.join(checks)}"
    elif story.report is not None:
        yield "gate: none was asked for"
    elif story.version is not None:
        yield "the record of its report is not in the store: nothing here tells of scores and gate"
    began = [node.record.started for node in story.nodes().values()]
    yield f"by {usual['who']} on {usual['machine']}, {usual['code']}, {min(began)} to {max(began)}"
    licences = sorted({source.licence or UNKNOWN for _, source in story.sources()})
    if licences:
        yield f"licences of model and data: {', '.join(licences)}"


def details(node: Node, facts: Facts) -> Iterator[str]:
    """Record, config, metrics, libraries and machine of a node."""
    record = node.record
    yield f"record {node.record_id}"
    yield f"artifact {record.content}"
    settings = {key: value for key, value in flat(record.config).items() if value is not None}
    drawn = {"seed": record.seed, "dtype": record.dtype, "device": record.device}
    settings |= {key: value for key, value in drawn.items() if value is not None}
    if settings and record.stage != "report":
        yield f"config: {_pairs(settings)}"
    if metrics := facts.metrics.get(node.record_id):
        yield "metrics: " + ", ".join(f"{name} {value:.6g}" for name, value in sorted(metrics.items()))
    if record.libraries:
        yield f"libraries: {', '.join(f'{name} {one}' for name, one in sorted(record.libraries.items()))}"
    yield f"machine: {_pairs(record.machine)}"
    yield f"code: {_pairs(record.code)}"
    yield f"by {record.who} at {record.started}, {record.seconds:.1f} s"


def code_of(record: Record) -> str:
    """Version, commit and whether the checkout had uncommitted changes."""
    commit = record.code.get("commit")
    dirty = " (dirty)" if record.code.get("dirty") == "true" else ""
    return f"resprout {record.code.get('resprout')}" + (f" {commit[:SHORT]}{dirty}" if commit else "")


def origin_lines(origin: dict[str, Any] | None) -> list[str]:
    """For each source of an acquired artifact its address and what it was pinned to."""
    if not origin:
        return []
    listed = origin.get("sources")
    entries = listed if isinstance(listed, list) else [origin]
    return [f"from {entry.get('uri')}{_identity(entry)}" for entry in entries if isinstance(entry, dict)]


def usual_of(story: Story) -> dict[str, str]:
    """What most records have in common, so that the tree shows only what is otherwise."""
    records = [node.record for node in story.nodes().values()]
    seen = [
        {"who": one.who, "machine": str(one.machine.get("host")), "code": code_of(one)} for one in records
    ]
    return {name: Counter(one[name] for one in seen).most_common(1)[0][0] for name in seen[0]}


def _differing(record: Record, usual: dict[str, str]) -> str:
    own = {"who": record.who, "machine": str(record.machine.get("host")), "code": code_of(record)}
    other = [f"{name} {value}" for name, value in own.items() if value != usual[name]]
    return f"  at {record.started}{', ' if other else ''}{', '.join(other)}"


def _reading_order(item: tuple[str, Node]) -> tuple[int, str]:
    role = item[0]
    return (FIRST.index(role) if role in FIRST else len(FIRST), role)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in sorted(values.items()))


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else str(value)


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
        parts.append(f"commit {entry['commit'][:SHORT]}")
    hashes = entry.get("sha256") or {}
    if hashes:
        name, first = min(hashes.items())
        one = f"sha256 {first[:SHORT]}"
        parts.append(one if len(hashes) == 1 else f"{len(hashes)} files, {name} {one}")
    elif entry.get("objects"):
        parts.append(f"{len(entry['objects'])} objects")
    return f" ({'; '.join(parts)})" if parts else ""
