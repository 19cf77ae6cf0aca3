"""Compare the lineage of two model versions: inputs, settings, code, libraries, machine, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resprout.flows.audit.lineage import Lineage, Results
from resprout.flows.audit.render import printable
from resprout.infra.lineage import Node, model_role
from resprout.infra.store.canonical import DIGEST
from resprout.tasks.core.mlflow_log import flat
from resprout.tasks.measure.ratio import SUFFIXES, ratio_in

if TYPE_CHECKING:
    from rich.table import Table

SECTIONS = ("config", "data", "plan", "artifacts", "metrics", "code", "libraries", "machine")
SHORT = 12
Values = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its title, and the compared values by section."""

    title: str
    values: dict[str, Values]


def side(lineage: Lineage, results: Results) -> Side:
    """All that is compared of a lineage."""
    labels = _labels(lineage)
    return Side(
        lineage.title,
        {
            "config": {key: value for key, value in flat(lineage.config()).items() if key != "config"},
            "data": dict(_data(lineage, labels)),
            "plan": _plan(results.plan),
            "artifacts": _artifacts(lineage, labels),
            "metrics": {
                f"{labels[identity]}.{name}": value
                for identity, found in results.metrics.items()
                if identity in labels
                for name, value in _comparable(found).items()
            },
            "code": dict(_code(lineage, labels)),
            "libraries": _versions(lineage),
            "machine": _machine(lineage),
        },
    )


def differences(one: Side, other: Side) -> dict[str, dict[str, list[Any]]]:
    """Return what differs by section, with both values; None where a side has no such value."""
    found: dict[str, dict[str, list[Any]]] = {}
    for section in SECTIONS:
        a, b = one.values[section], other.values[section]
        found[section] = {
            key: [a.get(key), b.get(key)] for key in sorted({*a, *b}) if a.get(key) != b.get(key)
        }
    return found


def tables(one: Side, other: Side) -> Iterator[Table | str]:
    """Yield for a screen a table for each section in which the two differ, a line for each other one.

    Both values stand side by side; of digests the first digits.
    """
    from rich.table import Column, Table

    for section, rows in differences(one, other).items():
        if not rows:
            yield f"{section}: the same"
            continue
        headers = (Column(title, ratio=1, overflow="fold") for title in map(_cell, (one.title, other.title)))
        keys = Column(section, ratio=1, overflow="fold")
        table = Table(keys, *headers, box=None, pad_edge=False, expand=True)
        for key, (a, b) in rows.items():
            table.add_row(_cell(key), _brief(a), _brief(b) + _change(section, a, b))
        yield table


def lines(one: Side, other: Side) -> Iterator[str]:
    """Yield a line for each item that differs, and one for each section in which the two do not."""
    for section, rows in differences(one, other).items():
        if not rows:
            yield f"{section}: the same"
        for key, (a, b) in rows.items():
            yield f"{section}: {printable(key)}: {_cell(a)} -> {_cell(b)}{_change(section, a, b)}"


def _change(section: str, a: Any, b: Any) -> str:
    numbers = all(isinstance(value, int | float) for value in (a, b))
    return f" ({b - a:+.6g})" if numbers and section == "metrics" else ""


def _labels(lineage: Lineage) -> dict[str, str]:
    """Return a label for each record that names it alike in any run; of equal ones for the topmost only."""
    found: dict[str, str] = {}
    for role, user, node in lineage.downwards():
        found.setdefault(_label(role, user, node), node.record_id)
    return {identity: label for label, identity in found.items()}


def _label(role: str, user: str, node: Node) -> str:
    stage = node.record.stage
    if stage == "acquire_model":
        return model_role(node.record)
    if node.record.origin:
        return f"{role} for {user}"
    return f"{stage} {role}" if stage in ("evaluate", "measure") else stage


def _comparable(metrics: dict[str, float]) -> Values:
    """The metrics, of speeds only the ratio to the dense model: absolute ones are of another hour each."""
    ratios = {name: ratio for name in metrics if (ratio := ratio_in(metrics, name)) is not None}
    parts = {f"{name}{suffix}" for name in ratios for suffix in SUFFIXES}
    others = {
        name: value
        for name, value in metrics.items()
        if name not in parts and not name.endswith("_tokens_per_s")
    }
    # Two intervals that both hold 1 are no difference between the two.
    shown = {
        f"{name} to dense": str(ratio) if ratio.different else "no difference"
        for name, ratio in ratios.items()
    }
    return {**others, **shown}


def _data(lineage: Lineage, labels: dict[str, str]) -> Iterator[tuple[str, str]]:
    nodes, licences = lineage.nodes(), lineage.licences()
    addresses: dict[str, list[str]] = {}
    for identity, source in lineage.sources():
        addresses.setdefault(identity, []).append(source.uri)
    for identity, label in labels.items():
        if identity in addresses:
            yield f"{label}: artifact", nodes[identity].record.content
            yield f"{label}: licence", licences[identity]
            yield f"{label}: source", ", ".join(addresses[identity])


def _artifacts(lineage: Lineage, labels: dict[str, str]) -> Values:
    """By stage the digest of what it made; what was brought here stands with the data."""
    nodes = lineage.nodes()
    return {
        label: nodes[identity].record.content
        for identity, label in labels.items()
        if not nodes[identity].record.origin
    }


def _plan(plan: dict[str, Any] | None) -> Values:
    """Sizes and, for each layer, which units are kept."""
    if plan is None:
        return {}
    layers = {
        f"layer {index:03d}: {unit}": kept
        for index, layer in enumerate(plan.get("layers", ()))
        for unit, kept in layer.items()
    }
    return {**flat({key: value for key, value in plan.items() if key != "layers"}), **layers}


def _code(lineage: Lineage, labels: dict[str, str]) -> Iterator[tuple[str, str]]:
    nodes = lineage.nodes()
    for identity, label in labels.items():
        code = nodes[identity].record.code
        if "reached" in code:
            yield f"{label}: reached", str(code["reached"])[:SHORT]
        state = f"{code.get('resprout')} {code.get('commit', '')}".strip()
        yield f"{label}: version", f"{state}{' dirty' if code.get('dirty') == 'true' else ''}"


def _versions(lineage: Lineage) -> Values:
    found: dict[str, set[str]] = {}
    for node in lineage.nodes().values():
        for name, version in node.record.libraries.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _machine(lineage: Lineage) -> Values:
    found: dict[str, set[str]] = {}
    for node in lineage.nodes().values():
        facts = {**node.record.machine, "who": node.record.who, "dtype": node.record.dtype}
        for name, value in {**facts, "device": node.record.device}.items():
            if value is not None:
                found.setdefault(name, set()).add(str(value))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _brief(value: Any) -> str:
    return value[:SHORT] if isinstance(value, str) and DIGEST.fullmatch(value) else _cell(value)


def _cell(value: Any) -> str:
    """A value on one line; of kept units how many there are and the first."""
    if value is None:
        return "-"
    if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
        return f"{len(value)} kept: {', '.join(map(str, value[:6]))}{', ...' if len(value) > 6 else ''}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(" ".join(str(value).split()))
