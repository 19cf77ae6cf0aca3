"""What a model version claims by its tags and its source, held against the records and run behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.place import Found, Place
from resprout.flows.rerun import digest_of_config
from resprout.flows.stages import tagged
from resprout.infra.lineage import Node
from resprout.infra.provenance.mlflow_state import Locations, locations, mask_locations
from resprout.infra.store.manifest import FileEntry, scan
from resprout.tasks.register.reconcile import COPY, is_copy, own_uri


@dataclass(frozen=True)
class Claim:
    """What the tag `name` must be (nothing: it must be absent), by the word of `witness`."""

    name: str
    allowed: frozenset[str]
    witness: str

    def problem(self, tags: Mapping[str, str]) -> str | None:
        """A sentence where the tag is not so."""
        given, wanted = tags.get(f"resprout.{self.name}"), " or ".join(sorted(self.allowed))
        if given in self.allowed or (given is None and not self.allowed):
            return None
        says = "is missing" if given is None else f"says {given}"
        return (
            f"tag resprout.{self.name} {says}, but {self.witness} {f'has {wanted}' if wanted else 'has none'}"
        )


def claims_of(
    place: Place, found: Found, top: Node, report: Node | None, known: Sequence[Locations] = ()
) -> list[str]:
    """What the tags and the source of a version say otherwise than its records and its run do.

    `known` are the places at which the store was, by the ledger.
    """
    problems = []
    if report is not None:
        exports = [parent.record.content for role, parent in report.parents if role == "export"]
        if report.record.stage != "report" or exports != [top.record.content] or not _states_a_run(report):
            problems.append(
                f"tag resprout.report_record says {report.record_id}, which is no report on "
                f"{top.record.content}"
            )
            report = None
    claims = [*_by_records(top), *(_by_report(report) if report else ()), *_by_run(place, found)]
    problems += [problem for claim in claims if (problem := claim.problem(found.tags or {}))]
    return problems + _source(place, found, top, known)


def _by_records(top: Node) -> Iterator[Claim]:
    for name, stage in tagged().items():
        made = frozenset(
            node.record.content
            for node in top.walk()
            if node.record.stage == stage and node.record.config.get("role", "model") == "model"
        )
        yield Claim(name, made, f"the lineage of record {top.record_id}")


def _states_a_run(report: Node) -> bool:
    """Whether a report's record holds the config of a run."""
    config = report.record.config.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return isinstance(model, dict) and isinstance(model.get("source"), str)


def _by_report(report: Node) -> Iterator[Claim]:
    config, witness = report.record.config["config"], f"the report's record {report.record_id}"
    yield Claim("report", frozenset({report.record.content}), witness)
    yield Claim("source", frozenset({config["model"]["source"]}), witness)
    yield Claim("config_digest", frozenset({digest_of_config(config)}), witness)


def _by_run(place: Place, found: Found) -> Iterator[Claim]:
    """What the run that registered the version wrote about itself."""
    run_id = found.run or ""
    witness = f"the version's run {run_id}"
    yield Claim("run", frozenset({run_id}), "the registry")
    try:
        tags = place.tracker.run(run_id).data.tags
    except BadInput:
        yield Claim("run", frozenset(), "MLflow")
        return
    yield Claim("commit", frozenset({tags.get("resprout.code.commit", "none")}), witness)
    for name, key in (
        ("version", "code.resprout"),
        ("source", "model_source"),
        ("config_digest", "config_digest"),
        ("method", "method"),
        ("report", "report"),
        ("report_record", "report_record"),
    ):
        yield Claim(name, frozenset({tags[f"resprout.{key}"]} if f"resprout.{key}" in tags else ()), witness)


def _source(place: Place, found: Found, top: Node, known: Sequence[Locations]) -> list[str]:
    """What is wrong with the place that the version points at: the store's own, or a copy that a run owns."""
    try:
        entries = place.store.manifest(top.record.content).files
    except (BadInput, VerificationFailed):
        # Hashing the artifact tells of it.
        return []
    folders = sorted({entry.path.partition("/")[0] for entry in entries})
    held = [own_uri(place.store, top.record.content, folder) for folder in folders]
    loaded = place.tracker.client.get_model_version_download_uri(found.name or "", found.number or "")
    if loaded != found.source:
        return [f"the version's source is {found.source}, but MLflow loads it from {loaded}"]
    if stands_for(place, found.source or "", known) in {stands_for(place, one) for one in held}:
        return []
    if not is_copy(place.store, place.tracker):
        return [f"the version's source is {found.source}, but its artifact is at {' or '.join(held)}"]
    if found.source != place.tracker.artifact_uri(found.run or "", COPY):
        return [f"the version's source is {found.source}, which is no copy among the artifacts of its run"]
    with place.store.workdir() as scratch:
        try:
            brought = place.tracker.client.download_artifacts(found.run or "", COPY, str(scratch))
            copied = scan(Path(brought)).files
        except (BadInput, MlflowException, OSError) as error:
            what = " ".join(str(error).split())[:300]
            return [f"the version's copy at {found.source} cannot be read: {what}"]
    one_of = [_differences(found.source or "", folder, entries, copied) for folder in folders]
    return min(one_of, key=len)


def stands_for(place: Place, address: str, known: Sequence[Locations] = ()) -> str:
    """An address with {store} for where the store is, or was by the ledger."""
    return str(mask_locations(address, locations(place.tracker, place.store.root_uri), *known))


def _differences(
    source: str, folder: str, entries: tuple[FileEntry, ...], copied: tuple[FileEntry, ...]
) -> list[str]:
    inside = [entry for entry in entries if entry.path.startswith(f"{folder}/")]
    wanted = {entry.path.removeprefix(f"{folder}/"): (entry.size, entry.sha256) for entry in inside}
    given = {entry.path: (entry.size, entry.sha256) for entry in copied}
    problems = []
    for path in sorted({*wanted, *given}):
        if wanted.get(path) != given.get(path):
            what = "is missing" if path not in given else "was added" if path not in wanted else "was changed"
            problems.append(f"{source}/{path} {what}: it is not as the export holds it")
    return problems
