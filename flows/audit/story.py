"""What lies behind a reference: the record of the model, and over it the report of the run that judged it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows.audit.reuse import ROLE, by_registry, linked
from resprout.flows.place import RUN_ID, STAGE, Found, Place, find, report_of
from resprout.infra import searches
from resprout.infra.licences import UNKNOWN
from resprout.infra.lineage import Node, Source, sources_behind, tree, trees
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import RECORD


@dataclass(frozen=True)
class Story:
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
        """All nodes by their record ids."""
        return {node.record_id: node for _, top in self.tops for node in top.walk()}

    def as_dict(self) -> dict[str, Any]:
        """Records by id, the ids at the top, and what the registry says."""
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
                for identity, node in self.nodes().items()
                for role, parent in node.parents
                if role == ROLE and not node.record.parents
            },
            "records": {
                identity: node.record.model_dump(mode="json") for identity, node in self.nodes().items()
            },
        }

    def roles(self) -> dict[str, str]:
        """For each record the role in which it is first met on the way down from the tops."""
        found: dict[str, str] = {}
        level = list(self.tops)
        while level:
            below: list[tuple[str, Node]] = []
            for role, node in level:
                if node.record_id not in found:
                    found[node.record_id] = role
                    below.extend(node.parents)
            level = below
        return found

    def config(self) -> dict[str, Any]:
        """The run's config as the report has it; the artifact's own section without a report."""
        if self.report is not None:
            own = self.report.record.config
            return dict(own.get("config", own))
        return dict(self.made.record.config) if self.made else {}

    def sources(self) -> list[tuple[str, Source]]:
        """Source model, encoder and data with the ids of the records that brought them."""
        return sources_behind(self.nodes())

    def licences(self) -> dict[str, str]:
        """The licences of what each record brought here."""
        found: dict[str, list[str]] = {}
        for identity, source in self.sources():
            found.setdefault(identity, []).append(source.licence or UNKNOWN)
        return {identity: ", ".join(sorted(set(named))) for identity, named in found.items()}


def tell(place: Place, reference: str) -> Story:
    """The story of models:/name/3, models:/name@alias, a digest, a record id, or the id of any run.

    Raises:
        BadInput: nothing is known under the reference.
        VerificationFailed: a record or a link between two does not hold.
    """
    run = None
    if RUN_ID.match(reference):
        tags = place.tracker.run(reference).data.tags
        if RECORD not in tags:
            return _of_run(place, reference, tags)
        run = reference
    found = find(place, reference)
    if found.version is not None:
        return _of_version(place, reference, found)
    made = tree(place.store, found.record)
    if made.record.stage == STAGE:
        return _over(place, reference, reference, made, run=run)
    report = _report(place.store, {}, made)
    return _over(place, reference, reference, report, made, run=run)


def _of_version(place: Place, reference: str, found: Found) -> Story:
    version = place.tracker.version(reference)
    tags = dict(version.tags)
    made = tree(place.store, found.record)
    about = {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(version.aliases or ()),
        "tags": dict(sorted(tags.items())),
        "source": version.source,
        "run": version.run_id,
    }
    report = _report(place.store, tags, made)
    title = found.version or reference
    return _over(place, reference, title, report, made, version=about, run=version.run_id)


def _of_run(place: Place, reference: str, tags: dict[str, str]) -> Story:
    """A whole run: its report where it came that far, else the ends of what its stages made."""
    named = tags.get("mlflow.runName", reference)
    report = _report(place.store, tags, None)
    if report is not None:
        return _over(place, reference, f"run {named}", report, run=reference)
    experiment = place.tracker.run(reference).info.experiment_id
    nested = searches.runs(place.tracker, f"tags.`mlflow.parentRunId` = '{reference}'", [experiment])
    records = sorted({one.data.tags[RECORD] for one in nested if RECORD in one.data.tags})
    if not records:
        raise BadInput(
            f"run {reference} has made nothing that is kept; give the id of another run, models:/name@alias, "
            "or a digest"
        )
    nodes = trees(place.store, records)
    behind = {parent.record_id for node in nodes for _, parent in node.parents}
    tops = [(node.record.stage, node) for node in nodes if node.record_id not in behind]
    tops.sort(key=lambda top: (top[1].record.started, top[1].record_id))
    title = f"run {named}, which came to no report"
    return Story(reference, title, _linked(place, tops), None, run=reference)


def _linked(place: Place, tops: list[tuple[str, Node]]) -> tuple[tuple[str, Node], ...]:
    made = by_registry(place)
    return tuple((role, linked(place.store, node, made)) for role, node in tops)


def _over(
    place: Place,
    reference: str,
    title: str,
    report: Node | None,
    made: Node | None = None,
    version: dict[str, Any] | None = None,
    run: str | None = None,
) -> Story:
    """The story from the report down, or from the artifact where it has none."""
    if report is not None and made is None:
        made = next((parent for role, parent in report.parents if role == "export"), None)
    tops = [("report", report)] if report else []
    if made is not None and (report is None or all(made.record_id != one.record_id for one in report.walk())):
        tops.append(("model" if made.record.stage == "export" else made.record.stage, made))
    return Story(reference, title, _linked(place, tops), made, report, version, run)


def _report(store: ArtifactStore, tags: dict[str, str], made: Node | None) -> Node | None:
    identity = report_of(store, tags, made.record if made else None)
    return tree(store, identity) if identity else None
