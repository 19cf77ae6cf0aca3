"""Lineage of a model version, artifact or run: the records behind it, and what their artifacts hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.workspace import DIGEST, RUN_ID, STAGE, Found, Workspace, find, report_of
from resprout.infra.licences import UNKNOWN
from resprout.infra.lineage import Node, RecordedSource, record_of_digest, sources_behind, tree, trees
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import PARENT, RECORD
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

ROLE = "version"
"""Role of the export behind a record that acquired a version of it as its source."""
RecordOfVersion = Callable[[str], str | None]
"""From the address of a version, models:/name/3, to the record of what it holds."""
METRICS, GATE, PLAN = "metrics.json", "gate.json", "plan.json"
THREADS = 8


@dataclass(frozen=True)
class Lineage:
    """A reference and the records behind it.

    `tops` are the nodes that nothing else here has as an input, each with the role it plays: the report, the
    artifact itself, or all ends of a run that did not come to a report. Behind what was acquired from a
    version of this store lies what that was made from.
    """

    reference: str
    title: str
    tops: tuple[tuple[str, Node], ...]
    made: Node | None
    """The artifact that is asked about: an export, where it is a version or a whole run."""
    report: Node | None = None
    version: dict[str, Any] | None = None
    """Name, version, aliases, tags, source and run of a model version."""
    run: str | None = None

    def nodes(self) -> dict[str, Node]:
        """Return all nodes by their record ids."""
        return {node.record_id: node for _, top in self.tops for node in top.walk()}

    def as_dict(self) -> dict[str, Any]:
        """Return the records by id, the ids at the top, and the state of the version."""
        nodes = self.nodes()
        return {
            "reference": self.reference,
            "top": self.tops[0][1].record_id,
            "tops": [node.record_id for _, node in self.tops],
            "made": self.made.record_id if self.made else None,
            "report": self.report.record_id if self.report else None,
            "run": self.run,
            "version": self.version,
            "origins": {
                identity: parent.record_id
                for identity, node in nodes.items()
                for role, parent in node.parents
                if role == ROLE and not node.record.parents
            },
            "records": {identity: node.record.model_dump(mode="json") for identity, node in nodes.items()},
        }

    def downwards(self) -> Iterator[tuple[str, str, Node]]:
        """Yield each node once, breadth first from the tops, with its role and the stage that reads it."""
        seen: set[str] = set()
        level = [(role, "", node) for role, node in self.tops]
        while level:
            below = []
            for role, user, node in level:
                if node.record_id not in seen:
                    seen.add(node.record_id)
                    yield role, user, node
                    below += [(behind, node.record.stage, parent) for behind, parent in node.parents]
            level = below

    def roles(self) -> dict[str, str]:
        """Return for each record the role in which it is first met on the way down from the tops."""
        return {node.record_id: role for role, _, node in self.downwards()}

    def config(self) -> dict[str, Any]:
        """Return the run's config as the report has it; the artifact's own section without a report."""
        if self.report is not None:
            own = self.report.record.config
            return dict(own.get("config", own))
        return dict(self.made.record.config) if self.made else {}

    def sources(self) -> list[tuple[str, RecordedSource]]:
        """Return source model, encoder and data with the ids of the records that brought them."""
        return sources_behind(self.nodes())

    def licences(self) -> dict[str, str]:
        """Return the licences of what each record brought here."""
        found: dict[str, list[str]] = {}
        for identity, source in self.sources():
            found.setdefault(identity, []).append(source.licence or UNKNOWN)
        return {identity: ", ".join(sorted(set(named))) for identity, named in found.items()}


def lineage_of(workspace: Workspace, reference: str) -> Lineage:
    """Return the lineage of models:/name/3, models:/name@alias, a digest, a record id, or any run's id.

    Raises:
        BadInput: nothing is known under the reference.
        VerificationFailed: a record or a link between two does not hold.
    """
    run = None
    if RUN_ID.match(reference):
        tags = workspace.tracker.run(reference).data.tags
        if RECORD not in tags:
            return _of_run(workspace, reference, tags)
        run = reference
    found = find(workspace, reference)
    made = tree(workspace.store, found.record)
    if found.version is not None:
        return _of_version(workspace, reference, found, made)
    if made.record.stage == STAGE:
        return _below_report(workspace, reference, reference, made, run=run)
    return _below_report(workspace, reference, reference, _report(workspace.store, {}, made), made, run=run)


def _of_version(workspace: Workspace, reference: str, found: Found, made: Node) -> Lineage:
    version = workspace.tracker.version(reference)
    tags = dict(version.tags)
    state = {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(version.aliases or ()),
        "tags": dict(sorted(tags.items())),
        "source": version.source,
        "run": version.run_id,
    }
    report, title = _report(workspace.store, tags, made), found.version or reference
    return _below_report(workspace, reference, title, report, made, version=state, run=version.run_id)


def _of_run(workspace: Workspace, reference: str, tags: dict[str, str]) -> Lineage:
    """Return the lineage of a whole run: its report if it came that far, else the ends of what it made."""
    named = tags.get("mlflow.runName", reference)
    report = _report(workspace.store, tags, None)
    if report is not None:
        return _below_report(workspace, reference, f"run {named}", report, run=reference)
    experiment = workspace.tracker.run(reference).info.experiment_id
    nested = search.runs(workspace.tracker, f"tags.`{PARENT}` = '{reference}'", [experiment])
    records = sorted({one.data.tags[RECORD] for one in nested if RECORD in one.data.tags})
    if not records:
        raise BadInput(
            f"run {reference} has made nothing that is kept; give the id of another run, models:/name@alias, "
            "or a digest"
        )
    nodes = trees(workspace.store, records)
    behind = {parent.record_id for node in nodes for _, parent in node.parents}
    tops = [(node.record.stage, node) for node in nodes if node.record_id not in behind]
    tops.sort(key=lambda top: (top[1].record.started, top[1].record_id))
    title = f"run {named}, which came to no report"
    return Lineage(reference, title, _with_versions(workspace, tops), None, run=reference)


def _below_report(
    workspace: Workspace,
    reference: str,
    title: str,
    report: Node | None,
    made: Node | None = None,
    version: dict[str, Any] | None = None,
    run: str | None = None,
) -> Lineage:
    """Return the lineage from the report down, or from the artifact where it has none."""
    if report is not None and made is None:
        made = next((parent for role, parent in report.parents if role == "export"), None)
    tops = [("report", report)] if report else []
    if made is not None and (report is None or all(made.record_id != one.record_id for one in report.walk())):
        tops.append(("model" if made.record.stage == "export" else made.record.stage, made))
    return Lineage(reference, title, _with_versions(workspace, tops), made, report, version, run)


def _report(store: ArtifactStore, tags: dict[str, str], made: Node | None) -> Node | None:
    identity = report_of(store, tags, made.record if made else None)
    return tree(store, identity) if identity else None


def origin_record(store: ArtifactStore, record: Record, record_of: RecordOfVersion) -> str | None:
    """Return the id of the record of an acquired version of this store; None where it was none.

    The version's tags as they were then go before its tags now, and where it lay comes last.
    """
    origin = record.origin or {}
    named = dict.fromkeys(str(origin.get(key, "")) for key in ("uri", "given"))
    addresses = [one for one in named if one.startswith("models:/") and "@" not in one]
    if not addresses:
        return None
    tags = origin.get("tags")
    candidates = [tags.get(RECORD) if isinstance(tags, dict) else None, *map(record_of, addresses)]
    for identity in candidates:
        if isinstance(identity, str) and DIGEST.match(identity) and store.has_record(identity):
            return identity
    content = f"{store.driver.uri('content')}/"
    digest = str(origin.get("source")).removeprefix(content).partition("/")[0]
    if not DIGEST.match(digest):
        return None
    try:
        return record_of_digest(store, digest)
    except BadInput:
        return None


def _with_versions(workspace: Workspace, tops: list[tuple[str, Node]]) -> tuple[tuple[str, Node], ...]:
    """Return the nodes with what is behind every acquired version of this store added as its input."""
    store = workspace.store

    def record_of(address: str) -> str | None:
        try:
            return workspace.tracker.version(address).tags.get(RECORD)
        except BadInput:
            return None

    def linked(node: Node, known: dict[str, Node]) -> Node:
        if node.record_id in known:
            return known[node.record_id]
        # A tag that was moved by hand may name what was made of this very node, which then stays as it is.
        known[node.record_id] = node
        parents = [(role, linked(parent, known)) for role, parent in node.parents]
        origin = None if parents else origin_record(store, node.record, record_of)
        if origin is not None:
            version = linked(tree(store, origin), known)
            if all(behind.record_id != node.record_id for behind in version.walk()):
                parents.append((ROLE, version))
        known[node.record_id] = Node(node.record_id, node.record, tuple(parents))
        return known[node.record_id]

    return tuple((role, linked(node, {})) for role, node in tops)


@dataclass(frozen=True)
class Results:
    """Results in the artifacts of a lineage: metrics by record id, the gate's verdict, and the plan."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    gate: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all of them, and the verdict in a word."""
        return {"metrics": self.metrics, "gate": self.gate, "plan": self.plan, "verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """passed, failed, or none where no gate was asked for."""
        return "none" if self.gate is None else "passed" if self.gate["passed"] else "failed"


def read_results(store: ArtifactStore, lineage: Lineage) -> Results:
    """Read the results of a lineage; what is no longer in the store is left out.

    Of several gates or plans the one nearest to the top counts: the report's own goes before one behind it.
    """
    nodes = [node for _, _, node in lineage.downwards()]

    def of_stage(stage: str, path: str) -> dict[str, Any] | None:
        held = (_read(store, node, path) for node in nodes if node.record.stage == stage)
        return next((data for data in held if data is not None), None)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda node: _read(store, node, METRICS), nodes))
    metrics = {node.record_id: data for node, data in zip(nodes, found, strict=True) if data is not None}
    return Results(metrics, of_stage("gate", GATE), of_stage("plan", PLAN))


def _read(store: ArtifactStore, node: Node, path: str) -> dict[str, Any] | None:
    """Read a JSON file of the node's artifact; None where it has none, or the artifact is not there."""
    try:
        if all(entry.path != path for entry in store.manifest(node.record.content).files):
            return None
        return dict(store.read_json(node.record.content, path))
    except (BadInput, VerificationFailed):
        # Erased, collected or damaged: the record still describes it, and `verify` reports what became of it.
        return None
