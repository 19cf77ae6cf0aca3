"""What an audit finds: every registered version and every failed gate, with all that is at odds about them.

Nothing is hashed and no artifact is opened: listings of the store, one read of each record that a version
needs, and pages of MLflow. Of a record only what the audit asks stays in memory.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.schema import LicencesConfig
from resprout.flows.audit.registry import registered
from resprout.flows.audit.verdicts import Ended, ended
from resprout.flows.place import DIGEST, Place
from resprout.flows.stages import tagged
from resprout.infra.licences import UNKNOWN, Credit, findings
from resprout.infra.lineage import Source, as_stated, credits_of, sources
from resprout.infra.mlflow.tracking import REPORT_RECORD
from resprout.infra.provenance.seal import CollectionStatement, read_collection
from resprout.infra.store import keys
from resprout.infra.store.record import Parent
from resprout.infra.store.store import ArtifactStore

THREADS = 16
INDEXES = ("made", "used", "signatures")
"""Rooms of the store in which a stray object would mislead whoever goes by them."""


@dataclass
class Row:
    """A version, a run whose gate failed, or the store itself where it holds what is at odds."""

    kind: str
    name: str
    version: str
    at: str
    verdict: str
    run: str
    digest: str
    aliases: list[str] = field(default_factory=list)
    signed: str = "no"
    """yes, no, or how many of the records behind it are."""
    sealed: bool = False
    licences: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What is at odds."""
    remarks: list[str] = field(default_factory=list)
    """What should be known and is allowed."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Slim:
    """What an audit needs of a record."""

    stage: str
    content: str
    parents: tuple[Parent, ...]
    sources: tuple[Source, ...]
    credits: tuple[Credit, ...]


class _Stored:
    """Listings of the store, and the records that were read so far."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.manifests = self._ids("manifests/")
        self.erased = self._ids("tombstones/")
        self.seals = self._ids("seals/")
        self.signatures: dict[str, list[str]] = {}
        for identity, other in keys.own(store.driver, "signatures"):
            self.signatures.setdefault(identity, []).append(other)
        strays = keys.strays(store.driver, INDEXES)
        self.problems = [f"{store.driver.uri(key)} is no object that resprout writes" for key in strays]
        """What is wrong with the store itself."""
        self.records: dict[str, _Slim | str] = {}
        """Slim records by id; a sentence where one cannot be read."""

    def _ids(self, prefix: str) -> set[str]:
        listed = self.store.driver.list(prefix)
        return {key.removeprefix(prefix).removesuffix(".json") for key in listed}

    def read(self, wanted: Iterable[str]) -> None:
        """Read these records and all behind them, a level at a time, each once."""
        level = list(dict.fromkeys(wanted))
        with ThreadPoolExecutor(THREADS) as pool:
            while level := [one for one in level if one not in self.records]:
                self.records.update(zip(level, pool.map(self._slim, level), strict=True))
                found = (self.records[one] for one in level)
                behind = (one.record for slim in found if isinstance(slim, _Slim) for one in slim.parents)
                level = list(dict.fromkeys(behind))

    def _slim(self, identity: str) -> _Slim | str:
        if not DIGEST.match(identity):
            return f"'{identity[:80]}' is no record id"
        try:
            record = self.store.get_record(identity)
        except BadInput:
            return f"record {identity} is missing"
        except VerificationFailed as error:
            return str(error)
        found = (tuple(sources(record)), tuple(credits_of(record)))
        return _Slim(record.stage, record.content, record.parents, *found)

    def behind(self, roots: Iterable[str]) -> list[str]:
        """The ids of these records and of all behind them, as far as they can be read."""
        order = list(dict.fromkeys(roots))
        seen = set(order)
        for identity in order:
            slim = self.records[identity]
            for parent in slim.parents if isinstance(slim, _Slim) else ():
                if parent.record not in seen:
                    seen.add(parent.record)
                    order.append(parent.record)
        return order


def survey(place: Place, policy: LicencesConfig, since: datetime.datetime | None) -> list[Row]:
    """A row for each version and each failed gate since then, the oldest first.

    What is wrong with the store itself, before all and whenever it was, makes a row of its own.
    """
    stored = _Stored(place.store)
    known = ended(place, stored.seals)
    whole = Row("store", place.store.root_uri, "", "", "", "", "", problems=stored.problems)
    found: list[tuple[Row, dict[str, str], str, str]] = []
    versions = registered(place, known, whole.problems)
    for version in versions:
        if _is_since(version.at, since):
            digest, at = version.tags.get("resprout.digest", ""), _time(version.at)
            row = Row("version", version.name, version.number, at, UNKNOWN, version.run, digest)
            row.aliases, row.problems = version.aliases, version.problems
            _judge(row, known.get(version.run))
            found.append((row, version.tags, version.record, version.report))
    made = {version.run for version in versions}
    for run in known.values():
        if (run.verdict == "failed" or run.problems) and run.run not in made and _is_since(run.at, since):
            row = Row("run", run.name, "", _time(run.at), run.verdict, run.run, "")
            _judge(row, run)
            found.append((row, {}, "", run.report))
    stored.read(one for _, _, *roots in found for one in roots if one)
    for row, tags, record, report in found:
        _look(stored, policy, row, tags, record, report)
    return [whole] * bool(whole.problems) + sorted((row for row, *_ in found), key=_order)


def _judge(row: Row, run: Ended | None) -> None:
    """Fill in the verdict of the row's run, and what seal and MLflow do not agree on."""
    if run is None:
        row.problems.append(f"neither MLflow nor a seal has a verdict of run {row.run or '(none)'}")
        return
    row.verdict, row.sealed = run.verdict, run.sealed
    row.problems += run.problems
    if not run.sealed:
        row.problems.append(f"run {row.run} has no seal")
    if row.kind == "version" and run.verdict == "failed":
        row.problems.append(f"the gate of run {row.run} failed, and yet the version is registered")


def _order(row: Row) -> tuple[str, bool, str, int]:
    return row.at, row.kind == "run", row.name, int(row.version or 0)


def _look(
    stored: _Stored, policy: LicencesConfig, row: Row, tags: dict[str, str], record: str, report: str
) -> None:
    """Fill in what records, signatures and licences say of a row."""
    roots = [one for one in (record, report) if one]
    stated = _collected(stored.store, row.run) if row.kind == "run" else None
    gone = stated.records if stated is not None else frozenset()
    if stated is not None and gone.issuperset(roots):
        # What no version needs is collected in time; seal and MLflow go on telling of the run.
        row.problems, row.remarks = [], [stated.sentence]
        return
    behind = stored.behind(roots)
    row.problems += _links(stored, behind, gone)
    if record:
        row.problems += _tags(stored, tags, record, stored.behind([record]))
    elif not report:
        row.problems.append("the run names no report")
    elif row.kind == "run" and isinstance(slim := stored.records[report], _Slim):
        row.digest = slim.content
    erased = sorted({slim.content for slim in _slims(stored, behind) if slim.content in stored.erased})
    row.remarks += [f"artifact {digest} was erased" for digest in erased]
    _signatures(stored, row, behind)
    slims = list(_slims(stored, behind))
    credits = [credit for slim in slims for credit in slim.credits]
    named = as_stated([source for slim in slims for source in slim.sources], credits)
    row.licences = sorted({source.licence or UNKNOWN for source in named})
    for finding in findings(policy, (Credit(one.what, one.name, one.licence) for one in named)):
        (row.problems if finding.rule == "deny" else row.remarks).append(str(finding))


def _collected(store: ArtifactStore, run: str) -> CollectionStatement | None:
    """What gc stated of a run; None where nothing, or where nobody can tell."""
    with suppress(VerificationFailed):
        return read_collection(store, run)
    return None


def _slims(stored: _Stored, identities: Iterable[str]) -> Iterator[_Slim]:
    return (slim for one in identities if isinstance(slim := stored.records[one], _Slim))


def _links(stored: _Stored, behind: list[str], gone: Collection[str]) -> Iterator[str]:
    """Records that are missing or changed, links that lead elsewhere, artifacts that are gone unstated."""
    for identity in behind:
        slim = stored.records[identity]
        if isinstance(slim, str):
            yield slim
            continue
        known = slim.content in stored.manifests or slim.content in stored.erased
        if not known and identity not in gone:
            yield f"artifact {slim.content} of stage {slim.stage} is missing"
        for parent in slim.parents:
            made = stored.records[parent.record]
            if isinstance(made, _Slim) and made.content != parent.digest:
                yield (
                    f"record {identity} names {parent.digest} as its {parent.role}, but record "
                    f"{parent.record} made {made.content}"
                )


def _tags(stored: _Stored, tags: dict[str, str], record: str, behind: list[str]) -> Iterator[str]:
    """Tags of a version that say something else than its records."""
    slim = stored.records[record]
    if not isinstance(slim, _Slim):
        return
    if tags.get("resprout.digest") != slim.content:
        yield (
            f"tag resprout.digest says {tags.get('resprout.digest')}, but record {record} made {slim.content}"
        )
    for name, stage in tagged().items():
        tag = f"resprout.{name}"
        made = {one.content for one in _slims(stored, behind) if one.stage == stage}
        if tags.get(tag) is not None and tags[tag] not in made:
            yield f"tag {tag} says {tags[tag]}, which no record behind {record} made"
    report = tags.get(REPORT_RECORD)
    over = stored.records[report] if report else None
    if isinstance(over, _Slim) and record not in {one.record for one in over.parents}:
        yield f"tag {REPORT_RECORD} says {report}, which is no report on record {record}"


def _signatures(stored: _Stored, row: Row, behind: list[str]) -> None:
    """How many records are signed by keys that count; whether the signatures hold is `verify`'s to say."""
    known = set(stored.store.signer.key_ids)
    good = sum(bool(known & set(stored.signatures.get(one, ()))) for one in behind)
    strange = {key for one in behind for key in stored.signatures.get(one, ()) if key not in known}
    row.signed = "yes" if behind and good == len(behind) else f"{good} of {len(behind)}" if good else "no"
    if stored.store.signer.required and good < len(behind):
        row.problems.append(f"{len(behind) - good} of {len(behind)} records carry no signature that counts")
    if strange:
        said = f"signed by keys that are not known here: {', '.join(sorted(strange))}"
        (row.problems if known else row.remarks).append(said)


def _is_since(milliseconds: int, since: datetime.datetime | None) -> bool:
    return since is None or milliseconds >= since.timestamp() * 1000


def _time(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.isoformat(timespec="seconds")
