"""A lineage as a tree on the terminal or as one HTML page, and text that is safe to show."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from resprout.flows.audit.lineage import Lineage, Results
from resprout.flows.stages import models
from resprout.infra.licences import UNKNOWN
from resprout.infra.lineage import Node
from resprout.infra.store.record import Record
from resprout.tasks.core.mlflow_log import flat
from resprout.tasks.evaluate.task_files import TaskCode
from resprout.tasks.report import graph
from resprout.tasks.report.pages import render

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

SHORT = 12
FIRST = ("export", "gate", *reversed(models()), "model", "plan", "calibration")
"""Order of roles in the tree: the export, the gate's verdict, then the models it was compared with."""


def draw(lineage: Lineage, results: Results, full: bool = False) -> Tree:
    """Each record once, with what is not as in the rest; `full` adds config, metrics, libraries, machine."""
    from rich.tree import Tree

    usual = usual_of(lineage)
    root = Tree(printable(lineage.title))
    for line in header(lineage, results, usual):
        root.add(printable(line))
    drawn, licences = set[str](), lineage.licences()

    def add(branch: Tree, role: str, node: Node) -> None:
        drawn.add(node.record_id)
        under = branch.add(printable(f"{named(role, node)}{_differing(node.record, usual)}"))
        for line in origin_lines(node.record.origin):
            under.add(printable(line))
        if node.record_id in licences:
            under.add(printable(f"licence {licences[node.record_id]}"))
        for line in details(node, results) if full else ():
            under.add(printable(line))
        again = []
        for parent_role, parent in sorted(node.parents, key=_reading_order):
            if parent.record_id in drawn:
                again.append(named(parent_role, parent))
            else:
                add(under, parent_role, parent)
        if again:
            under.add(printable(f"(above) {', '.join(again)}"))

    for role, top in lineage.tops:
        add(root, role, top)
    return root


def named(role: str, node: Node) -> str:
    """Role, stage and short digest."""
    stage = node.record.stage
    return f"{f'{role}: ' if role != stage else ''}{stage} {node.record.content[:SHORT]}"


def header(lineage: Lineage, results: Results, usual: dict[str, str]) -> Iterator[str]:
    """Verdict, when and by whom, code, licences of what it was made from."""
    if lineage.version is not None and lineage.version["aliases"]:
        yield f"aliases: {', '.join(lineage.version['aliases'])}"
    if results.gate is not None:
        checks = [
            f"{one['name']}: {one['shown']}"
            if one.get("shown")
            else f"{one['name']} {one['value']:.4g} (bound {one['bound']:g})"
            for one in results.gate["checks"]
        ]
        yield f"gate {results.verdict}: {'; '.join(checks)}"
    elif lineage.report is not None:
        yield "gate: none was asked for"
    elif lineage.version is not None:
        yield "the record of its report is not in the store: nothing here shows scores and gate"
    began = [node.record.started for node in lineage.nodes().values()]
    yield f"by {usual['who']} on {usual['machine']}, {usual['code']}, {min(began)} to {max(began)}"
    licences = sorted({source.licence or UNKNOWN for _, source in lineage.sources()})
    if licences:
        yield f"licences of model and data: {', '.join(licences)}"


def details(node: Node, results: Results) -> Iterator[str]:
    """Record, config, metrics, libraries and machine of a node."""
    record = node.record
    yield f"record {node.record_id}"
    yield f"artifact {record.content}"
    settings = {key: value for key, value in flat(record.config).items() if value is not None}
    drawn = {"seed": record.seed, "dtype": record.dtype, "device": record.device}
    settings |= {key: value for key, value in drawn.items() if value is not None}
    if settings and record.stage != "report":
        yield f"config: {_pairs(settings)}"
    if metrics := results.metrics.get(node.record_id):
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
    code = origin.get("trusted_code")
    trusted = [TaskCode(**code).sentence] if isinstance(code, dict) else []
    places = [f"from {entry.get('uri')}{_identity(entry)}" for entry in entries if isinstance(entry, dict)]
    return places + trusted


def usual_of(lineage: Lineage) -> dict[str, str]:
    """Return who, where and which code most records share, so that the tree shows only what differs."""
    records = [node.record for node in lineage.nodes().values()]
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
    """The pinned form of a source, in brackets: distribution, commit or version, and hashes of its files."""
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


def page(lineage: Lineage, results: Results) -> str:
    """The page; everything that came from a config, a name or a file is escaped."""
    nodes, roles, licences = lineage.nodes(), lineage.roles(), lineage.licences()
    labels = [_label(node, roles[identity], licences) for identity, node in nodes.items()]
    return render(
        "page.html",
        {
            "title": lineage.title,
            "reference": lineage.reference,
            "header": list(header(lineage, results, usual_of(lineage))),
            "version": lineage.version,
            "drawing": graph.draw(
                {
                    identity: [parent.record_id for _, parent in node.parents]
                    for identity, node in nodes.items()
                }
            ),
            "labels": labels,
            "nodes": sorted(nodes.values(), key=lambda node: node.record.started, reverse=True),
            "roles": roles,
            "licences": licences,
            "details": {identity: list(details(node, results)) for identity, node in nodes.items()},
            "origins": {identity: origin_lines(node.record.origin) for identity, node in nodes.items()},
        },
        "resprout.flows.audit",
    )


def _label(node: Node, role: str, licences: dict[str, str]) -> graph.Label:
    """The box of a record, which leads to its details."""
    record, licence = node.record, licences.get(node.record_id)
    name = named(role, node).removesuffix(f" {record.content[:SHORT]}")
    text = str(record.config.get("role") or name) if licence else name
    what = f"licence {licence}" if licence else f"{record.content[:SHORT]} {record.started[:10]}"
    kind = "source" if licence else "end" if record.kind == "export" else "step"
    return graph.Label.of(
        node.record_id, text, what, f"{role}: {record.stage} {record.content}", kind, f"r-{node.record_id}"
    )


def printable(text: object) -> str:
    """The text with rich's markup escaped, and what is not printable (terminals obey it) made visible."""
    return escape(
        "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in str(text))
    )


def json_line(data: Any) -> str:
    """Sorted on one line; null for infinities and NaN, which Python would write but JSON does not know."""
    return json.dumps(_finite(data), sort_keys=True, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def console(width: int = 1000) -> Console:
    """The terminal; in a pipe lines of `width`, where no one sees one and nothing should be folded."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=width)
