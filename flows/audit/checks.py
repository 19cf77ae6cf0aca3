"""All checks of what resprout registered, listed once: `verify` runs them all, `audit` the shallow ones.

A check is about one version, run, record or artifact, or about the store, and yields a sentence for each
thing that is at odds. A shallow check reads MLflow, records, seals, ledgers and listings. A deep one reads
what surrounds them as well: it hashes artifacts and the files of runs, checks signatures and timestamps,
and follows the entries of cache and index. The list stands at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from resprout.configs.errors import BadInput, StageFailed, Transient, VerificationFailed
from resprout.flows.audit.evidence import Evidence, RunEvidence, VersionEvidence, without_hold
from resprout.flows.rerun_command import digest_of_config
from resprout.flows.stages import tagged
from resprout.infra import identity
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import GATE, RECORD, REPORT_RECORD
from resprout.infra.provenance.ledger import Ledger, RegistryState, ledgers
from resprout.infra.provenance.mlflow_state import (
    Locations,
    State,
    differences,
    mask_locations,
    run_states,
    stage_run_problems,
    version_state,
)
from resprout.infra.provenance.seal import COPY, read_collection
from resprout.infra.provenance.statement import provenance_problems
from resprout.infra.provenance.timestamp import token_key
from resprout.infra.retention.mlflow_data import download_files
from resprout.infra.store import exports, keys, tombstones
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import plain_status, unsafe
from resprout.infra.store.manifest import FileEntry, Manifest, hash_file, scan
from resprout.infra.store.record import Record
from resprout.infra.store.signing import ADOPT
from resprout.infra.store.store import index_keys
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.register.reconcile import copies, is_copy, own_uri

Depth = Literal["shallow", "deep"]
Problems = Iterator[str]
INDEXES = ("made", "used", "signatures")
"""Rooms of the store in which a stray object would mislead whoever goes by them."""
LATE = timedelta(hours=1)
"""Most seconds from a seal to its timestamp; beyond that the seal was rewritten or a clock was wrong."""
KEYED = 3
"""Version of records since which they say all that their key is made of."""
REPORTS = "reports"
LOGGED = "report/"
"""Folder of a run's files in MLflow that holds its report."""
CONFIG = "config.yaml"
"""File of the page that names folders of this machine, and so is another one in the artifact."""


# Model versions


def version_marks(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The version is in the registry, and has the tags by which its record is found."""
    if version.entity is None:
        yield (
            f"{version.uri} was removed from the registry: the ledger knows it as version {version.number}"
        )
    elif not {RECORD, "resprout.digest"} <= version.tags.keys():
        yield (
            f"{version.uri} has no {RECORD} or resprout.digest tag: it was not registered by resprout, or "
            "its tags were removed"
        )


def version_state_as_stated(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The registry shows of the version and its model what the ledger states."""
    name, what = version.name, version.uri
    try:
        expected = evidence.ledger(name)
    except VerificationFailed as error:
        yield f"the ledger of {name} does not hold: {error}"
        return
    if version.entity is None:
        return
    try:
        if version.number in expected.versions:
            yield from _version_differences(evidence, version, expected)
        elif evidence.is_announced(version):
            evidence.unfinished[what] = (
                f"{what} is unfinished: its run announced it and has not entered it in the ledger; where "
                "that run was killed, the next run of its config does"
            )
        else:
            evidence.state(version)
            yield (
                f"{what} is not in the ledger {Ledger(evidence.store, name).uri}: an old version of resprout "
                "registered it, or its entry was removed"
            )
            return
        # Before its first version is entered nothing is stated of the model.
        if expected.model:
            shown = mask_locations(evidence.model(name)[0], evidence.here, *expected.locations)
            stated = without_hold(expected.model)
            yield from differences(stated, without_hold(shown), f"registered model {name}:")
    except (StageFailed, VerificationFailed) as error:
        yield f"{what} cannot be read: {error}"


def _version_differences(evidence: Evidence, version: VersionEvidence, expected: RegistryState) -> Problems:
    state = evidence.masked(version, evidence.state(version))
    stated = without_hold(expected.versions[version.number])
    stated.pop("download", None)
    # Tags are on their way where the run that announced them has not recorded that it is done.
    announced = expected.announced_tags.get(version.number, {})
    set_already = {key: value for key, value in announced.items() if state["tags"].get(key) == value}
    is_new = bool({*set_already.items()} - {*stated["tags"].items()})
    if is_new and evidence.is_at_work(expected.announced_by.get(version.number)):
        evidence.unfinished[f"tags of {version.uri}"] = (
            f"{version.uri}: tags were announced and set, and not stated as set"
        )
        stated["tags"] = {**stated["tags"], **set_already}
    yield from differences(stated, state, f"{version.uri}:")


def aliases_as_stated(evidence: Evidence, version: VersionEvidence) -> Problems:
    """Aliases that point at the version, or by the ledger should, are where the ledger has them."""
    name, expected = version.name, evidence.ledger_or_none(version.name)
    if expected is None or (version.entity is None and not search.is_registered(evidence.tracker, name)):
        return
    try:
        shown = evidence.model(name)[1]
    except (StageFailed, VerificationFailed) as error:
        yield f"registered model {name} cannot be read: {error}"
        return
    for alias in sorted({*expected.aliases, *shown}):
        then, now = expected.aliases.get(alias), shown.get(alias)
        pair = {then, now} - {None}
        # What points from nowhere to a version that resprout does not know is a matter of all its versions.
        if then == now or (version.number not in pair and pair & expected.versions.keys()):
            continue
        announced = now in expected.announced_aliases.get(alias, ())
        if announced and evidence.is_at_work(expected.announced_by.get(f"alias:{alias}")):
            evidence.unfinished[f"alias {alias} of {name}"] = (
                f"alias {alias} of {name} was announced and moved, and not stated as moved: its run is at "
                "work, or was killed"
            )
            continue
        before, after = ({alias: at} if at is not None else {} for at in (then, now))
        yield from differences(before, after, f"alias of {name}")


@dataclass(frozen=True)
class Claim:
    """A tag and its allowed values (none: it must be absent), by the word of `witness`."""

    name: str
    allowed: frozenset[str]
    witness: str

    def problem(self, version: VersionEvidence) -> str | None:
        """Return a sentence where the version's tag has another value."""
        given = version.tags.get(f"resprout.{self.name}")
        if given in self.allowed or (given is None and not self.allowed):
            return None
        wanted = " or ".join(sorted(self.allowed))
        return (
            f"{version.uri}: tag resprout.{self.name} {'is missing' if given is None else f'says {given}'}, "
            f"but {self.witness} {f'has {wanted}' if wanted else 'has none'}"
        )


def version_tags(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The version's tags say what its records and its run do."""
    if version.entity is None or not version.record:
        return
    made, what = evidence.record(version.record), version.uri
    if isinstance(made, str):
        yield f"{what}: tag {RECORD} says {version.record}, but {made}"
        return
    if version.tags.get("resprout.digest") not in (None, made.content):
        yield (
            f"{what}: tag resprout.digest says {version.tags['resprout.digest']}, but the record in tag "
            f"{RECORD}, {version.record}, made {made.content}"
        )
    claims = [*_claims_of_records(evidence, version), *_claims_of_run(evidence, version)]
    if version.report:
        report = evidence.record(version.report)
        if isinstance(report, str):
            yield f"{what}: tag {REPORT_RECORD} says {version.report}, but {report}"
        elif (config := _config_of(report, made)) is None:
            yield (
                f"{what}: tag {REPORT_RECORD} says {version.report}, which is no report on record "
                f"{version.record}"
            )
        else:
            witness = f"the report's record {version.report}"
            claims += [
                Claim("report", frozenset({report.content}), witness),
                Claim("source", frozenset({config["model"]["source"]}), witness),
                Claim("config_digest", frozenset({digest_of_config(config)}), witness),
            ]
    yield from (problem for claim in claims if (problem := claim.problem(version)))


def _config_of(report: Record, made: Record) -> dict[str, Any] | None:
    """Return the run's config that a report on an export holds; None where the record is no such report."""
    config = report.config.get("config")
    on = [parent.digest for parent in report.parents if parent.role == "export"]
    model = config.get("model") if isinstance(config, dict) else None
    sound = isinstance(model, dict) and isinstance(model.get("source"), str)
    return config if report.stage == "report" and on == [made.content] and sound else None


def _claims_of_records(evidence: Evidence, version: VersionEvidence) -> Iterator[Claim]:
    behind = [evidence.record(one) for one in evidence.behind([version.record])]
    records = [one for one in behind if isinstance(one, Record)]
    # Of a lineage with a gap no one can tell what is missing in it; the gap itself is reported.
    for name, stage in tagged().items() if len(records) == len(behind) else ():
        made = [one for one in records if one.stage == stage and one.config.get("role", "model") == "model"]
        witness = f"the lineage of record {version.record}"
        yield Claim(name, frozenset(one.content for one in made), witness)


def _claims_of_run(evidence: Evidence, version: VersionEvidence) -> Iterator[Claim]:
    """The tags that the run which registered the version wrote about itself."""
    shown, witness = evidence.run(version.run).shown, f"the version's run {version.run}"
    yield Claim("run", frozenset({version.run}), "the registry")
    if shown is None:
        yield Claim("run", frozenset(), "MLflow")
        return
    tags = shown.data.tags
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


def version_source(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The version's source is the store's own folder, or a copy that its run owns."""
    held = _exported(evidence, version)
    if held is None:
        return
    made, _, folders = held
    what, source, store = version.uri, version.source, evidence.store
    own = [own_uri(store, made.content, folder) for folder in folders]
    masked = evidence.masked(version, source)
    if masked in [evidence.masked(version, one) for one in own]:
        if masked != mask_locations(source, evidence.here):
            evidence.remarks.append(
                f"{what}: MLflow loads it from {source}, where the store was; its bytes are at "
                f"{store.uri(made.content)}, and `resprout relocate` tells MLflow"
            )
    elif not is_copy(store, evidence.tracker):
        yield f"{what}: the version's source is {source}, but its artifact is at {' or '.join(own)}"
    elif source not in copies(evidence.tracker, version.run):
        yield (
            f"{what}: the version's source is {source}, which is no copy in the files of its LoggedModel or "
            "of its run"
        )


def version_download(evidence: Evidence, version: VersionEvidence) -> Problems:
    """MLflow loads the version from its source, which need not be where it shows it."""
    if version.entity is None:
        return
    try:
        loaded = version_state(evidence.tracker, version.name, version.number)["download"]
    except (StageFailed, VerificationFailed) as error:
        yield f"{version.uri} cannot be read: {error}"
        return
    expected = evidence.ledger_or_none(version.name)
    stated = expected.versions.get(version.number, {}).get("download") if expected else None
    if stated is not None:
        shown = {"download": evidence.masked(version, loaded)}
        yield from differences({"download": stated}, shown, f"{version.uri}:")
    if loaded != version.source:
        yield f"{version.uri}: the version's source is {version.source}, but MLflow loads it from {loaded}"


def version_copy(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The copy that a version points at has the bytes of the export."""
    held = _exported(evidence, version)
    source, tracker = version.source, evidence.tracker
    if held is None or not is_copy(evidence.store, tracker) or source not in copies(tracker, version.run):
        return
    _, entries, folders = held
    with evidence.store.workdir() as scratch:
        try:
            brought = scratch / "copy"
            if not download_files(tracker, source, brought):
                raise BadInput("nothing is there")
            copied = scan(brought).files
        except (BadInput, StageFailed, Transient, OSError) as error:
            why = " ".join(str(error).split())[:300]
            yield f"{version.uri}: the version's copy at {source} cannot be read: {why}"
            return
    one_of = [_changed_files(folder, entries, copied) for folder in folders]
    for path, how in min(one_of, key=len).items():
        yield f"{version.uri}: {source}/{path} {how}: it is not as the export holds it"


def _exported(
    evidence: Evidence, version: VersionEvidence
) -> tuple[Record, tuple[FileEntry, ...], list[str]] | None:
    """Return the export's record, its files and their folders; None where they cannot be read."""
    made = evidence.record(version.record) if version.entity is not None and version.record else ""
    if isinstance(made, str):
        return None
    try:
        entries = evidence.store.manifest(made.content).files
    except (BadInput, VerificationFailed):
        # Looking at the artifact reports it.
        return None
    return made, entries, sorted({entry.path.partition("/")[0] for entry in entries})


def _changed_files(
    folder: str, entries: tuple[FileEntry, ...], copied: tuple[FileEntry, ...]
) -> dict[str, str]:
    inside = [entry for entry in entries if entry.path.startswith(f"{folder}/")]
    wanted = {entry.path.removeprefix(f"{folder}/"): (entry.size, entry.sha256) for entry in inside}
    given = {entry.path: (entry.size, entry.sha256) for entry in copied}
    return {
        path: "is missing" if path not in given else "was added" if path not in wanted else "was changed"
        for path in sorted({*wanted, *given})
        if wanted.get(path) != given.get(path)
    }


def version_seal(evidence: Evidence, version: VersionEvidence) -> Problems:
    """The seal of the version's run is the one that the ledger names, and is about this version."""
    run = evidence.run(version.run)
    if run.verdict == "failed":
        yield f"the gate of run {run.id} failed, and yet {version.uri} is registered"
    if run.seal is None:
        return
    sealed, expected = run.seal.predicate, evidence.ledger_or_none(version.name)
    if expected is not None:
        if expected.seals.get(run.id, run.seal.sha256) != run.seal.sha256:
            yield f"the seal of run {run.id} was changed: the ledger of {version.name} names another"
        token = token_key(run.id)
        if run.id in expected.timestamps and evidence.store.driver.head(token) is None:
            yield f"the timestamp {evidence.store.driver.uri(token)} was removed"
    if sealed.get("registered") != version.uri:
        yield f"the seal of run {run.id} is about {sealed.get('registered')}, not {version.uri}"
    if "sealed_by" not in sealed and sealed.get("export") != version.record:
        yield (
            f"the seal of run {run.id} is about the export of record {sealed.get('export')}, not about that "
            f"of {version.uri}"
        )


def version_licences(evidence: Evidence, version: VersionEvidence) -> Problems:
    """No licence behind the version is one that infra.licences.deny names."""
    for found in evidence.licences([version.record, version.report])[1]:
        if found.rule == "deny":
            yield f"{version.uri}: {found}"


# Runs


def run_seal(evidence: Evidence, run: RunEvidence) -> Problems:
    """A run that ended well has a seal, signed where that is required, on a version that a ledger knows."""
    if run.damage is not None:
        yield f"the seal of run {run.id} does not hold: {run.damage}"
    if run.seal is None:
        if run.damage is None:
            yield (
                f"MLflow run {run.id or '(none)'} has no seal: it never ended well, an old version of "
                "resprout made it, or the seal was removed"
            )
        return
    sealed = run.seal.predicate
    if not run.seal.opened.signed_by:
        evidence.unsigned_seals.append(f"the seal of run {run.id}")
        if evidence.store.signer.required:
            yield f"the seal of run {run.id} has no signature that counts"
    if "sealed_by" in sealed:
        evidence.remarks.append(f"run {run.id} died after it registered; run {sealed['sealed_by']} sealed it")
    name, _, number = str(sealed.get("registered") or "").removeprefix("models:/").rpartition("/")
    try:
        expected = evidence.ledger(name) if name else None
        if expected is None or number in expected.versions.keys() | expected.former_versions:
            return
        uri = f"models:/{name}/{number}"
        try:
            announced = evidence.is_announced(evidence.version(uri))
        except BadInput:
            announced = False
        if not announced:
            yield f"the seal of run {run.id} names {uri}, which no ledger knows"
    except (StageFailed, VerificationFailed) as error:
        yield f"the seal of run {run.id} names {name}, whose ledger does not hold: {error}"


def run_verdict(evidence: Evidence, run: RunEvidence) -> Problems:
    """MLflow shows the verdict that is sealed, on a run that is not deleted."""
    shown = run.shown.data.tags.get(GATE) if run.shown else None
    sealed = run.seal.predicate.get("verdict") if run.seal else None
    if run.shown is not None and run.shown.info.lifecycle_stage != "active":
        yield f"run {run.id} was deleted in MLflow"
    if shown is None and run.seal is None:
        yield f"neither MLflow nor a seal has a verdict of run {run.id or '(none)'}"
    elif shown is None and sealed is not None:
        yield f"run {run.id} is sealed as {sealed}, but MLflow shows no verdict of it"
    elif sealed is not None and shown != sealed:
        yield f"tag {GATE} of run {run.id} says {shown}, but its seal says {sealed}"


def run_report(evidence: Evidence, run: RunEvidence) -> Problems:
    """A run that came to a verdict names its report."""
    if run.verdict is not None and not run.report:
        yield f"run {run.id} names no report"


def run_collection(evidence: Evidence, run: RunEvidence) -> Problems:
    """The statement on what gc freed of the run can be read and counts."""
    try:
        read_collection(evidence.store, run.id)
    except VerificationFailed as error:
        yield str(error)


def run_licences(evidence: Evidence, run: RunEvidence) -> Problems:
    """No licence behind an unregistered run is one that infra.licences.deny names."""
    if run.seal is not None and run.seal.predicate.get("registered"):
        return
    for found in evidence.licences([run.report])[1]:
        if found.rule == "deny":
            yield f"run {run.id}: {found}"


def run_state(evidence: Evidence, run: RunEvidence) -> Problems:
    """MLflow shows of a sealed run and its nested runs what it did when the run ended."""
    if run.seal is None:
        return
    sealed = run.seal.predicate["runs"]
    then = Locations(**run.seal.predicate["places"])
    try:
        states = mask_locations(run_states(evidence.tracker, run.id, COPY), evidence.here, then)
    except (BadInput, StageFailed, VerificationFailed, Transient) as error:
        if isinstance(error, Transient) and not evidence.tracker.is_up():
            raise
        yield f"MLflow run {run.id} cannot be read: {error}"
        return
    erased: dict[str, str] = {}
    for digest in sorted(evidence.erased):
        try:
            stone = evidence.store.tombstone(digest)
        except (BadInput, VerificationFailed):
            # Reported with the store, and with the artifact where it is behind what is checked.
            continue
        erased |= stone.tracked if stone is not None else {}
    for one in sorted({*sealed, *states}):
        stated, shown = sealed.get(one), states.get(one)
        what = f"MLflow run {one} ({(stated or shown)['info'].get('runName', '')})"
        if stated is None or shown is None:
            yield f"{what} was {'added' if stated is None else 'removed'} below run {run.id}"
        else:
            stated = _without_erased(stated, shown, one, erased)
            yield from differences(without_hold(stated), without_hold(shown), f"{what}:")


def _without_erased(sealed: State, shown: State, run_id: str, erased: dict[str, str]) -> State:
    """Leave out files that were erased on request: missing, they are as they should be."""
    files = {
        path: entry
        for path, entry in sealed["files"].items()
        if path in shown["files"] or erased.get(f"{run_id}/{path}") != entry["sha256"]
    }
    return {**sealed, "files": files}


def run_metrics(evidence: Evidence, run: RunEvidence) -> Problems:
    """The sealed metrics and tags of stages are those of their records and artifacts."""
    if run.seal is not None:
        yield from stage_run_problems(evidence.store, run.id, run.seal.predicate["runs"])


def run_provenance(evidence: Evidence, run: RunEvidence) -> Problems:
    """The provenance statement is the sealed one, and what the records make."""
    sealed = run.seal.predicate if run.seal else {}
    made, report = sealed.get("export"), sealed.get("report")
    if made and report and not evidence.collected(run.id) & {made, report}:
        same = sealed["resprout"] == identity.library_version("resprout")
        signed, statement = sealed["provenance"], sealed["statement"]
        yield from provenance_problems(evidence.store, made, report, signed, statement, rebuild=same)


def run_timestamp(evidence: Evidence, run: RunEvidence) -> Problems:
    """The timestamp on the seal, where there is one, is the authority's word on these bytes."""
    key, authority = token_key(run.id), evidence.workspace.authority
    if run.seal is None or authority is None:
        return
    token = evidence.store.driver.get_bytes(key)
    if token is None:
        return
    try:
        when = authority.dated(run.seal.data, token)
    except VerificationFailed as error:
        yield f"{evidence.store.driver.uri(key)}: {error}"
        return
    evidence.dated[run.id] = when
    sealed = run.seal.predicate["sealed"]
    if abs(when - datetime.fromisoformat(sealed)) > LATE:
        yield f"the seal of run {run.id} says {sealed}, but was dated {when}"


def run_signatures(evidence: Evidence, run: RunEvidence) -> Problems:
    """The records that a seal names are signed by the keys that had signed them then, and by no stranger."""
    if run.seal is None:
        return
    collected, store = evidence.collected(run.id), evidence.store
    for record, named in sorted(run.seal.predicate["records"].items()):
        signed, there = {*named, *run.seal.adopted_by}, {*evidence.signatures(record)}
        if record in collected:
            continue
        for key in sorted(signed - there):
            yield f"the signature of key {key} on record {record} was removed"
        for key in sorted(there - signed - {*store.signer.key_ids}):
            yield f"a signature of key {key}, which is not known, was added to record {record}"


def run_report_page(evidence: Evidence, run: RunEvidence) -> Problems:
    """The report page below the home is as a run of this name wrote it."""
    name = run.seal.predicate.get("name") if run.seal else None
    if not name or not run.report or name in evidence.report_pages or unsafe(name):
        return
    evidence.report_pages.add(name)
    folder = evidence.workspace.home / REPORTS / name
    found = dict(_page_files(folder)) if folder.is_dir() else {}
    # A later run of the same name put its own there.
    if found and not any(
        found.keys() & page.keys() and all(found[path] == page[path] for path in found.keys() & page)
        for page in _pages_of(evidence, name)
    ):
        yield f"the report page in {folder} was changed: no run of {name} wrote it so"


def _page_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield path and SHA-256 of the files of a page; what is no plain file has no hash."""
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG:
            continue
        try:
            plain_status(folder, path.name)
            yield path.name, hash_file(path, path.name).sha256
        except (FileNotFoundError, VerificationFailed):
            yield path.name, ""


def _pages_of(evidence: Evidence, name: str) -> Iterator[dict[str, str]]:
    """Yield SHA-256 by file of each report that a run of this name wrote, by the seals, which gc leaves.

    A run that was killed before its seal had put its page there already, so MLflow comes last.
    """
    for seal in evidence.seals():
        if seal.predicate.get("name") == name:
            files = seal.predicate["runs"].get(seal.predicate["run"], {}).get("files", {}).items()
            yield {path.removeprefix(LOGGED): one["sha256"] for path, one in files if path.startswith(LOGGED)}
    runs = search.runs(evidence.tracker, "tags.`resprout.report` LIKE '%'")
    for digest in dict.fromkeys(
        one.data.tags["resprout.report"] for one in runs if one.info.run_name == name
    ):
        try:
            yield {entry.path: entry.sha256 for entry in evidence.store.manifest(digest).files}
        except (BadInput, VerificationFailed):
            continue


# Records and artifacts


def record_links(evidence: Evidence, record_id: str) -> Problems:
    """The record is there and unchanged, its key is its own, and its parents made what it names."""
    record = evidence.record(record_id)
    if isinstance(record, str):
        yield record
        return
    if record.schema_version >= KEYED and record.key != record.own_key:
        yield f"record {record_id} was made up: what it says does not make its key {record.key}"
    for parent in record.parents:
        made = evidence.record(parent.record)
        if isinstance(made, Record) and made.content != parent.digest:
            yield (
                f"record {record_id} names {parent.digest} as its {parent.role}, but record {parent.record} "
                f"made {made.content}"
            )


def record_signed(evidence: Evidence, record_id: str) -> Problems:
    """A known key signed the record, where that is required."""
    if isinstance(evidence.record(record_id), str):
        return
    there, known = {*evidence.signatures(record_id)}, {*evidence.store.signer.key_ids}
    evidence.signers |= there & known
    evidence.strangers |= there - known
    if not there:
        evidence.unsigned_records.add(record_id)
    if evidence.store.signer.required and not there & known:
        yield f"record {record_id} has no signature that counts; {ADOPT}"


def record_signatures(evidence: Evidence, record_id: str) -> Problems:
    """The signatures on the record hold."""
    if isinstance(evidence.record(record_id), str):
        return
    store, there = evidence.store, evidence.signatures(record_id)
    good = store.signed_by(record_id, store.driver.get_bytes(f"records/{record_id}.json") or b"")
    for key in sorted({*there} - {*good}):
        what = f"the signature of key {key} on record {record_id} was changed:"
        if key in store.signer.key_ids:
            yield f"{what} it does not hold"
        elif not _is_signature(store.driver.get_bytes(f"signatures/{record_id}/{key}"), key):
            yield f"{what} it is none"


def _is_signature(data: bytes | None, key_id: str) -> bool:
    """Whether the bytes have the form of a signature by this key, which no one here can check."""
    try:
        given = parse_json(data or b"", key_id)
        return canonical_json(given) == data and given["keyid"] == key_id and len(given["sig"]) == 128
    except (ValueError, KeyError, TypeError):
        return False


def record_manifest(evidence: Evidence, record_id: str) -> Problems:
    """The manifest is the one that the record names."""
    for record in evidence.intact([record_id]):
        data = evidence.store.driver.get_bytes(f"manifests/{record.content}.json")
        # Where it is missing or another's, hashing the artifact reports it.
        if data is not None and record.manifest is not None and sha256_hex(data) != record.manifest:
            yield f"the manifest of artifact {record.content} was changed after record {record_id}"


def record_result(evidence: Evidence, record_id: str) -> Problems:
    """The cache's pointer leads to this record, or to a later one of the same key."""
    store = evidence.store
    for record in evidence.intact([record_id]):
        where, data = (
            store.driver.uri(f"results/{record.key}"),
            store.driver.get_bytes(f"results/{record.key}"),
        )
        if data is None:
            yield f"{where} was removed"
            continue
        try:
            given = parse_json(data, where)
            sound = canonical_json(given) == data and sorted(given) == ["digest", "record"]
            later = store.get_record(given["record"]) if sound else record
        except (ValueError, KeyError, TypeError, BadInput, VerificationFailed):
            sound, later = False, record
        if not sound or (later.key, later.content) != (record.key, given["digest"]):
            yield f"{where} was changed: it does not lead to a record of this key"
        elif later.id == record_id:
            continue
        elif store.signed_by(record_id, record.dumps()) and not store.signed_by(later.id, later.dumps()):
            yield f"{where} was changed: record {later.id} is not signed as the one before it is"
        elif not evidence.is_named(later.id):
            yield from evidence.left_behind(later.id, f"{where} was changed: {_unnamed(later.id)}")


def record_index(evidence: Evidence, record_id: str) -> Problems:
    """The record has its index entries, and those that lead from it lead to records."""
    if isinstance(evidence.record(record_id), str):
        return
    store = evidence.store
    for record in evidence.intact([record_id]):
        for key in index_keys(record_id, record):
            data = store.driver.get_bytes(key)
            if data != b"":
                yield f"index entry {store.driver.uri(key)} was {'removed' if data is None else 'changed'}"
    for child in sorted({*store.children(record_id)} - evidence.seen - evidence.record_ids):
        where = store.driver.uri(f"used/{record_id}/{child}")
        yield from evidence.left_behind(child, f"index entry {where} leads nowhere: there is no such record")


def artifact_present(evidence: Evidence, digest: str) -> Problems:
    """The artifact is there."""
    if not evidence.has_artifact(digest) and digest not in evidence.erased:
        yield f"there is no artifact {digest} in {evidence.store.root_uri}: its manifest was removed"


def artifact_bytes(evidence: Evidence, digest: str) -> Problems:
    """Every byte is as published, but for files that were erased on request."""
    evidence.hashed.add(digest)
    if not evidence.has_artifact(digest):
        return
    try:
        yield from evidence.store.verify(digest, evidence.share, evidence.draw)
        if (stone := evidence.store.tombstone(digest)) is not None:
            evidence.remarks.append(f"{len(stone.files)} files of artifact {digest} were {stone.sentence}")
    except (BadInput, VerificationFailed) as error:
        yield str(error)


def artifact_index(evidence: Evidence, digest: str) -> Problems:
    """Other records of the same artifact are sound, and a run or a seal names them."""
    store = evidence.store
    for other in sorted({*store.records_of(digest)} - evidence.seen):
        entry = f"index entry {store.driver.uri(f'made/{digest}/{other}')}"
        record = evidence.record(other)
        if isinstance(record, str):
            lost = f"{entry} leads nowhere: {record}"
            yield from evidence.left_behind(other, lost) if other not in evidence.record_ids else [lost]
        elif record.content != digest:
            yield f"{entry} leads to a record of artifact {record.content}"
        elif wrong := list(record_links(evidence, other)):
            yield from wrong
        elif store.signer.required and not store.signed_by(other, record.dumps()):
            yield f"record {other} has no signature that counts; {ADOPT}"
        elif not evidence.is_named(other):
            yield from evidence.left_behind(other, _unnamed(other))


def artifact_exports(evidence: Evidence, digest: str) -> Problems:
    """The notes by which the weights of an export are recognised lead to it."""
    known = (evidence.records.get(one) for one in evidence.store.records_of(digest))
    if any(isinstance(one, Record) and one.stage == "export" for one in known):
        yield from exports.problems(evidence.store, digest)


def _unnamed(record_id: str) -> str:
    return (
        f"record {record_id} is named by no run and no seal: someone put it there, or a run of an earlier "
        "version that was killed left it, and `resprout gc` removes it"
    )


# The store


def store_ledgers(evidence: Evidence, _: str) -> Problems:
    """Every ledger can be read."""
    problems: list[str] = []
    for name in ledgers(evidence.store, problems):
        try:
            evidence.ledger(name)
        except VerificationFailed as error:
            yield f"the ledger of {name} does not hold: {error}"
    yield from problems


def store_tombstones(evidence: Evidence, _: str) -> Problems:
    """Every tombstone can be read and counts."""
    for digest in sorted(evidence.erased):
        try:
            tombstones.of(evidence.store.driver, evidence.store.signer, digest)
        except (BadInput, VerificationFailed) as error:
            yield str(error)


def index_strays(evidence: Evidence, _: str) -> Problems:
    """The indexes hold no object that no store wrote."""
    return _strays(evidence, INDEXES)


def other_strays(evidence: Evidence, _: str) -> Problems:
    """Nor do the other rooms of the store."""
    return _strays(evidence, [room for room in keys.PATTERNS if room not in INDEXES])


def _strays(evidence: Evidence, rooms: Iterable[str]) -> Problems:
    driver = evidence.store.driver
    return (f"{driver.uri(key)} is no object that resprout writes" for key in keys.strays(driver, rooms))


def store_entries(evidence: Evidence, _: str) -> Problems:
    """Each index entry and each signature leads to a record that says so; what is set aside is not there."""
    driver = evidence.store.driver
    ids = sorted(evidence.record_ids)
    read = dict(zip(ids, evidence.pool.map(evidence.record, ids), strict=True))
    yield from (record for record in read.values() if isinstance(record, str))
    intact = {one: record for one, record in read.items() if isinstance(record, Record)}
    wanted = {key for one, record in intact.items() for key in index_keys(one, record)}
    for room in ("made", "used"):
        for parts in keys.own(driver, room):
            key = "/".join((room, *parts))
            # A record that cannot be read is reported once.
            if key not in wanted and (parts[-1] in intact or parts[-1] not in read):
                problem = f"index entry {driver.uri(key)} leads to no record that says so"
                yield from [problem] if parts[-1] in read else evidence.left_behind(parts[-1], problem)
    for record_id, key_id in keys.own(driver, "signatures"):
        if record_id not in read:
            where = driver.uri(f"signatures/{record_id}/{key_id}")
            yield from evidence.left_behind(record_id, f"signature {where} is on no record that is there")
    for (digest,) in keys.own(driver, "quarantine"):
        where = driver.uri(f"quarantine/{digest}.json")
        try:
            Manifest.loads(driver.get_bytes(f"quarantine/{digest}.json") or b"", digest)
        except VerificationFailed as error:
            yield f"{where} is no manifest that was set aside: {error}"
            continue
        if driver.head(f"manifests/{digest}.json") is not None:
            yield f"{where} says that artifact {digest} is set aside, but it is there; delete the entry"


@dataclass(frozen=True)
class Check:
    """A check of the subject `about`: a version, a run, a record, an artifact or the store."""

    name: str
    about: Literal["version", "run", "record", "artifact", "store"]
    depth: Depth
    find: Callable[[Evidence, Any], Problems]


CHECKS: Sequence[Check] = (
    Check("registered", "version", "shallow", version_marks),
    Check("ledger", "version", "shallow", version_state_as_stated),
    Check("aliases", "version", "shallow", aliases_as_stated),
    Check("tags", "version", "shallow", version_tags),
    Check("source", "version", "shallow", version_source),
    Check("download", "version", "deep", version_download),
    Check("copy", "version", "deep", version_copy),
    Check("version of the seal", "version", "shallow", version_seal),
    Check("licences", "version", "shallow", version_licences),
    Check("seal", "run", "shallow", run_seal),
    Check("verdict", "run", "shallow", run_verdict),
    Check("report", "run", "shallow", run_report),
    Check("collection", "run", "shallow", run_collection),
    Check("licences of the run", "run", "shallow", run_licences),
    Check("state in MLflow", "run", "deep", run_state),
    Check("metrics", "run", "deep", run_metrics),
    Check("provenance", "run", "deep", run_provenance),
    Check("timestamp", "run", "deep", run_timestamp),
    Check("signatures in the seal", "run", "deep", run_signatures),
    Check("report page", "run", "deep", run_report_page),
    Check("record", "record", "shallow", record_links),
    Check("signed", "record", "shallow", record_signed),
    Check("signatures", "record", "deep", record_signatures),
    Check("manifest", "record", "deep", record_manifest),
    Check("cache", "record", "deep", record_result),
    Check("index of the record", "record", "deep", record_index),
    Check("artifact", "artifact", "shallow", artifact_present),
    Check("bytes", "artifact", "deep", artifact_bytes),
    Check("index of the artifact", "artifact", "deep", artifact_index),
    Check("export notes", "artifact", "deep", artifact_exports),
    Check("ledgers", "store", "shallow", store_ledgers),
    Check("tombstones", "store", "shallow", store_tombstones),
    Check("strays in the indexes", "store", "shallow", index_strays),
    Check("other strays", "store", "deep", other_strays),
    Check("entries", "store", "deep", store_entries),
)
"""All checks, in the order in which they run on a subject."""
