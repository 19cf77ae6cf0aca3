"""Evidence that checks hold against each other: records, seals, ledgers and MLflow, each read once."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed
from resprout.configs.infrastructure import LicencesConfig
from resprout.flows.workspace import DIGEST, Workspace
from resprout.infra.licences import UNKNOWN, Credit, PolicyFinding, findings
from resprout.infra.lineage import as_stated, credits_of, sources
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import GATE, HOLD, RECORD, REGISTRATION, REPORT_RECORD
from resprout.infra.provenance.ledger import Ledger, RegistryState, ledgers, replay, require_signed
from resprout.infra.provenance.mlflow_state import (
    State,
    locations,
    mask_locations,
    model_state,
    version_state,
)
from resprout.infra.provenance.seal import Seal, read_collection, read_seal
from resprout.infra.store import keys
from resprout.infra.store.record import Record
from resprout.infra.store.stored_json import parse_json

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

THREADS = 16
ORDERS = 16
"""Lineages that are kept in memory: the checks of one version ask for the same again and again."""
OWN = "resprout."
"""How the tags begin that resprout sets."""


@dataclass(frozen=True)
class VersionEvidence:
    """A model version as the registry shows it; as its ledger does where it was removed from there."""

    name: str
    number: str
    tags: Mapping[str, str]
    source: str
    run: str
    at: int
    """When it was made, in milliseconds."""
    entity: ModelVersion | None = None
    """MLflow's answer; None where the version was removed."""
    stated: Mapping[str, str] = field(default_factory=dict)
    """Its tags by the ledger."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def record(self) -> str:
        """Id of the record of its export; by the ledger where the tag was removed, else empty."""
        return self.tags.get(RECORD) or self.stated.get(RECORD, "")

    @property
    def report(self) -> str:
        """Id of the record of the report; by the ledger where the tag was removed, else empty."""
        return self.tags.get(REPORT_RECORD) or self.stated.get(REPORT_RECORD, "")


@dataclass(frozen=True)
class RunEvidence:
    """A run: its seal, or why that cannot be read, and what MLflow shows of it."""

    id: str
    seal: Seal | None
    damage: str | None
    shown: Run | None

    @property
    def name(self) -> str:
        """Name of the config."""
        sealed = self.seal.predicate.get("name") if self.seal else None
        return str(sealed or (self.shown.info.run_name if self.shown else ""))

    @property
    def verdict(self) -> str | None:
        """passed, failed or none: by the seal, which few can edit, else by MLflow; None without both."""
        sealed = self.seal.predicate.get("verdict") if self.seal else None
        return sealed or (self.shown.data.tags.get(GATE) if self.shown else None)

    @property
    def at(self) -> int:
        """When it began, by MLflow, in milliseconds; where MLflow does not know it, when it was sealed."""
        if self.shown is not None:
            return int(self.shown.info.start_time)
        sealed = self.seal.predicate["sealed"] if self.seal else None
        return int(datetime.fromisoformat(sealed).timestamp() * 1000) if sealed else 0

    @property
    def report(self) -> str:
        """Id of the record of its report, by the seal, else by MLflow; empty where nothing names one.

        The seal of a run that died after it registered, which another run wrote, names none.
        """
        if self.seal is not None and "sealed_by" not in self.seal.predicate:
            return str(self.seal.predicate.get("report") or "")
        return str((self.shown.data.tags.get(REPORT_RECORD) if self.shown else None) or "")


class Evidence:
    """Readers of store and MLflow for all checks; what they find besides problems is kept here for notes.

    `share` of the files is hashed, drawn with `draw`; of the others size and stored checksum are compared.
    """

    def __init__(
        self,
        workspace: Workspace,
        policy: LicencesConfig,
        share: float = 1.0,
        draw: random.Random | None = None,
    ) -> None:
        self.workspace, self.policy = workspace, policy
        self.store, self.tracker = workspace.store, workspace.tracker
        self.share, self.draw = share, draw or random.Random(0)
        self.here = locations(workspace.tracker, workspace.store.root_uri)
        self.records: dict[str, Record | str] = {}
        """Records by id; a sentence where one cannot be read."""
        self.seen: set[str] = set()
        """Ids of the records that were checked."""
        self.hashed: set[str] = set()
        """Digests of the artifacts that were checked."""
        self.signers: set[str] = set()
        self.strangers: set[str] = set()
        self.unsigned_records: set[str] = set()
        self.unsigned_seals: list[str] = []
        self.dated: dict[str, datetime] = {}
        self.unfinished: dict[str, str] = {}
        """Announced and not stated as done, by what it is, with a sentence for each."""
        self.heads: dict[str, str] = {}
        """Length and last hash of each ledger that was read; who keeps them notices when its end is cut."""
        self.remarks: list[str] = []
        """Sentences on what is allowed and should be known."""
        self.report_pages: set[str] = set()
        """Names of the runs whose page was read."""
        self.pool = ThreadPoolExecutor(THREADS)
        """Threads for reading; what runs in them must not wait for others of them."""
        self._ledgers: dict[str, RegistryState | str] = {}
        self._models: dict[str, tuple[State, dict[str, str]]] = {}
        self._states: dict[str, State] = {}
        self._seals: dict[str, Seal | str | None] = {}
        self._runs: dict[str, Run | None] = {}
        self._orders: dict[tuple[str, ...], list[str]] = {}
        self._manifests: set[str] | None = None
        self._signatures: dict[str, list[str]] | None = None

    def prefetch(self) -> None:
        """List what checks of everything ask for one by one."""
        self._runs |= {run.info.run_id: run for run in search.runs(self.tracker, f"tags.`{GATE}` LIKE '%'")}
        self._manifests = {digest for (digest,) in keys.own(self.store.driver, "manifests")}
        self._signatures = {}
        for record, key in keys.own(self.store.driver, "signatures"):
            self._signatures.setdefault(record, []).append(key)

    def judged_runs(self) -> list[str]:
        """Return the ids of all runs that came to a verdict, also of other experiments and deleted ones."""
        return sorted({run for (run,) in keys.own(self.store.driver, "seals")} | self._runs.keys())

    def must_be_sealed(self) -> set[str]:
        """Return the ids of the runs of this experiment that came to a verdict and ended well."""
        return {run.info.run_id for run in self.tracker.concluded()}

    def versions(self, runs: Iterable[str]) -> list[VersionEvidence]:
        """Return all versions with a tag of resprout, a source in the store, or one of these runs, and all
        that a ledger has.
        """
        own, store, found = set(runs), f"{self.store.root_uri}/", {}
        stated = {name: state for name in ledgers(self.store, []) if (state := self.ledger_or_none(name))}
        for one in search.versions(self.tracker):
            version = self._version(one)
            known = version.name in stated and version.number in stated[version.name].versions
            tagged = any(tag.startswith(OWN) for tag in version.tags)
            if known or tagged or version.source.startswith(store) or version.run in own:
                found[version.uri] = version
        for name, state in stated.items():
            for number in state.versions:
                found.setdefault(f"models:/{name}/{number}", self._removed(name, number, state))
        return sorted(found.values(), key=lambda one: (one.at, one.name, int(one.number)))

    def version(self, reference: str) -> VersionEvidence:
        """Return what models:/name/3 or models:/name@alias names; BadInput where there is none."""
        return self._version(self.tracker.version(reference))

    def _version(self, one: ModelVersion) -> VersionEvidence:
        number, state = str(one.version), self.ledger_or_none(one.name)
        stated = state.versions.get(number, {}).get("tags", {}) if state else {}
        at, source, run = int(one.creation_timestamp), one.source or "", one.run_id or ""
        return VersionEvidence(one.name, number, dict(one.tags), source, run, at, one, stated)

    @staticmethod
    def _removed(name: str, number: str, state: RegistryState) -> VersionEvidence:
        stated = state.versions[number]
        at, tags = int(stated.get("creationTimestamp", 0)), dict(stated.get("tags", {}))
        return VersionEvidence(name, number, tags, stated.get("source", ""), stated.get("runId", ""), at)

    def state(self, version: VersionEvidence) -> State:
        """Return what the registry shows of a version, but for where MLflow loads it from."""
        if version.uri not in self._states:
            found = version_state(self.tracker, version.name, version.number, found=version.entity)
            self._states[version.uri] = without_hold(found)
        return self._states[version.uri]

    def masked(self, version: VersionEvidence, state: Any) -> Any:
        """Return the state, or an address in it, without the addresses that the ledger of the model knows."""
        expected = self.ledger_or_none(version.name)
        return mask_locations(state, self.here, *(expected.locations if expected is not None else ()))

    def model(self, name: str) -> tuple[State, dict[str, str]]:
        """Return what the registry shows of a registered model, and its aliases."""
        if name not in self._models:
            self._models[name] = model_state(self.tracker, name)
        return self._models[name]

    def ledger(self, name: str) -> RegistryState:
        """Return the state of a model by its ledger; VerificationFailed where the chain is damaged."""
        if name not in self._ledgers:
            try:
                entries = list(Ledger(self.store, name).entries())
                require_signed(name, entries, self.store.signer.required)
                self._ledgers[name] = state = replay(entries)
                if entries:
                    self.heads[name] = f"{len(entries)} entries, the last with SHA-256 {entries[-1].sha256}"
                self.remarks += [*state.restarts, *state.adoptions]
            except VerificationFailed as error:
                self._ledgers[name] = str(error)
        found = self._ledgers[name]
        if isinstance(found, str):
            raise VerificationFailed(found)
        return found

    def ledger_or_none(self, name: str) -> RegistryState | None:
        """Return the same, None where the chain is damaged, which a check reports."""
        try:
            return self.ledger(name)
        except VerificationFailed:
            return None

    def aliases(self, version: VersionEvidence) -> list[str]:
        """Return the aliases that point at a version now."""
        if version.entity is None:
            return []
        return sorted(alias for alias, at in self.model(version.name)[1].items() if at == version.number)

    def others(self) -> Iterator[str]:
        """Yield the versions that no ledger knows, of the models that were checked."""
        for name in self._models:
            expected = self.ledger_or_none(name)
            for version in map(self._version, search.versions(self.tracker, search.named(name))):
                known = expected is None or version.number in expected.versions
                if not known and not self.is_announced(version):
                    yield version.uri

    def is_at_work(self, runs: set[str] | None) -> bool:
        """Whether what these runs announced in the registry may not be in the ledger yet.

        A run takes its announcement back once its entry is there; then an entry that is missing was removed.
        What no run announced, a person did, of whom nothing more is known.
        """
        return not runs or any(self.tracker.announced(REGISTRATION, run) for run in runs)

    def is_announced(self, version: VersionEvidence) -> bool:
        """Whether a version that the ledger lacks is as its run announced it, and the run is not done."""
        expected = self.ledger_or_none(version.name)
        if version.entity is None or expected is None or version.number in expected.versions:
            return False
        try:
            state = self.masked(version, self.state(version))
        except (StageFailed, VerificationFailed):
            return False
        announced = expected.announced_tags.get(version.number, {})
        for intent in map(without_hold, expected.intents):
            same = all(
                intent.get(key, "") == state.get(key, "") for key in ("source", "description", "runId")
            )
            if same and state["tags"] in (intent["tags"], {**intent["tags"], **announced}):
                return self.is_at_work({str(state.get("runId"))})
        return False

    def run(self, run_id: str) -> RunEvidence:
        """Return what seal and MLflow have of a run."""
        if run_id not in self._seals:
            try:
                self._seals[run_id] = read_seal(self.store, run_id)
            except VerificationFailed as error:
                self._seals[run_id] = str(error)
        if run_id not in self._runs:
            try:
                self._runs[run_id] = self.tracker.run(run_id)
            except BadInput:
                self._runs[run_id] = None
        seal = self._seals[run_id]
        damage = seal if isinstance(seal, str) else None
        return RunEvidence(run_id, None if isinstance(seal, str) else seal, damage, self._runs[run_id])

    def forget_seal(self, run_id: str) -> None:
        """Drop a seal from memory; there may be thousands, each with the state of a whole run."""
        self._seals.pop(run_id, None)

    def collected(self, run_id: str) -> frozenset[str]:
        """Return the records of a sealed run that gc freed; none where the statement does not count."""
        try:
            stated = read_collection(self.store, run_id)
        except VerificationFailed:
            return frozenset()
        if stated is None:
            return frozenset()
        self.remarks.append(stated.sentence)
        return stated.records

    def record(self, identity: str) -> Record | str:
        """Return a record, or a sentence that says why there is none."""
        if identity not in self.records:
            self.records[identity] = self._read(identity)
        return self.records[identity]

    def _read(self, identity: str) -> Record | str:
        if not DIGEST.match(identity):
            return f"'{identity[:80]}' is no record id"
        try:
            return self.store.get_record(identity)
        except BadInput:
            return f"record {identity} is missing"
        except VerificationFailed as error:
            return str(error)

    def behind(self, roots: Iterable[str]) -> list[str]:
        """Return the ids of these records and of all behind them, read a level at a time."""
        asked = tuple(dict.fromkeys(one for one in roots if one))
        if asked not in self._orders:
            if len(self._orders) == ORDERS:
                self._orders.clear()
            self._orders[asked] = self._order(asked)
        return self._orders[asked]

    def _order(self, roots: tuple[str, ...]) -> list[str]:
        level = list(roots)
        order = dict.fromkeys(level)
        while level:
            new = [one for one in level if one not in self.records]
            self.records.update(zip(new, self.pool.map(self._read, new), strict=True))
            parents = [one.record for record in self.intact(level) for one in record.parents]
            level = list(dict.fromkeys(one for one in parents if one not in order))
            order |= dict.fromkeys(level)
        return list(order)

    def intact(self, identities: Iterable[str]) -> Iterator[Record]:
        """Yield those of these records that can be read."""
        return (found for one in identities if isinstance(found := self.record(one), Record))

    def has_artifact(self, digest: str) -> bool:
        """Whether the artifact is visible; what was erased keeps its manifest."""
        if self._manifests is not None:
            return digest in self._manifests
        return self.store.driver.head(f"manifests/{digest}.json") is not None

    @cached_property
    def erased(self) -> frozenset[str]:
        """Digests of the artifacts of which something was erased."""
        return frozenset(digest for (digest,) in keys.own(self.store.driver, "tombstones"))

    def signatures(self, record: str) -> list[str]:
        """Return the ids of all keys, known or not, that signed a record."""
        if self._signatures is not None:
            return self._signatures.get(record, [])
        return self.store.signatures_of(record)

    def licences(self, roots: Iterable[str]) -> tuple[list[str], list[PolicyFinding]]:
        """Return the licences of all sources behind these records, and what the policy says of them."""
        records = list(self.intact(self.behind(roots)))
        credits = [credit for one in records for credit in credits_of(one)]
        named = as_stated([source for one in records for source in sources(one)], credits)
        judged = findings(self.policy, (Credit(one.what, one.name, one.licence) for one in named))
        return sorted({source.licence or UNKNOWN for source in named}), judged

    def is_named(self, identity: str) -> bool:
        """Whether a run in MLflow or a seal names a record, or one that was made from it, as from a shard."""
        if identity in self.seen or identity in self._in_seals or self.tracker.producer(identity) is not None:
            return True
        return any(self.is_named(child) for child in self.store.children(identity) if child != identity)

    @cached_property
    def _in_seals(self) -> frozenset[str]:
        """Ids of all records that a seal names."""
        return frozenset(record for seal in self.seals() for record in seal.predicate["records"])

    def seals(self) -> Iterator[Seal]:
        """Yield every seal that can be read."""
        for (run,) in keys.own(self.store.driver, "seals"):
            with suppress(VerificationFailed):
                if (seal := read_seal(self.store, run)) is not None:
                    yield seal

    def neighbours(self, records: Iterable[str]) -> set[str]:
        """Return the records of the same artifacts as these, and those that the cache has for their keys."""
        found: set[str] = set()
        for record in self.intact(records):
            found.update(self.store.records_of(record.content))
            if (pointer := self.store.driver.get_bytes(f"results/{record.key}")) is not None:
                # Checking the record's own pointer reports what it is instead.
                with suppress(VerificationFailed, KeyError, TypeError):
                    found.add(parse_json(pointer, record.key)["record"])
        return found

    @cached_property
    def record_ids(self) -> frozenset[str]:
        """Ids of all records in the store."""
        return frozenset(identity for (identity,) in keys.own(self.store.driver, "records"))

    def left_behind(self, identity: str, problem: str) -> Iterator[str]:
        """Yield the problem, unless a run announced that it would write the record and was killed."""
        if identity not in self.unfinished and self.tracker.announced(identity):
            self.unfinished[identity] = (
                f"record {identity} is unfinished: its run announced it and was killed before it named "
                "it, or is at it now"
            )
        if identity not in self.unfinished:
            yield problem


def without_hold(state: State) -> State:
    """Leave out a legal hold, which whoever keeps the registry may set and lift at any time."""
    tags = {key: value for key, value in state.get("tags", {}).items() if key != HOLD}
    return {**state, "tags": tags}
