"""GC roots: what registered versions, legal holds, recent runs and runs in progress keep from deletion."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.mlflow import search
from resprout.infra.mlflow.errors import allowing, mlflow_errors
from resprout.infra.mlflow.tracking import HOLD, MAX_TAG_CHARS, PARENT, RECORD, STAGE, Tracker
from resprout.infra.provenance.ledger import Ledger
from resprout.infra.provenance.seal import read_seal
from resprout.infra.store import keys, tombstones
from resprout.infra.store.canonical import DIGEST, sha256_hex
from resprout.infra.store.in_use import references
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from mlflow.entities import Run

THREADS = 8
DAY_SECONDS = 86400.0
REGISTERED, HELD, RECENT, IN_USE = (
    "a registered version",
    "a legal hold",
    "a recent run",
    "a run in progress",
)
REPORT_RECORD = "resprout.report_record"
IN_SOURCE = re.compile(r"(?<![0-9a-z])[0-9a-f]{64}(?![0-9a-z])")
"""A digest in the source of a version."""
RUN_ID = re.compile(r"^[0-9a-f]{32}$")


@dataclass
class Roots:
    """Records and digests to keep, each with its reason; of several reasons the first counts."""

    records: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """Digests stand for all records that made them."""
    erased: set[str] = field(default_factory=set)
    """Digests of which something was erased: they stay, and of what they were made from the records."""

    def add_records(self, records: Iterable[str], reason: str) -> None:
        """Add records that are kept for this reason."""
        for record in records:
            self.records.setdefault(record, reason)


@dataclass
class VersionRoots:
    """Records and runs that a version in the registry names."""

    records: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LedgerRoots:
    """Roots of a model's versions by number, as its ledger has them, and the keys of the entries read."""

    name: str
    keys: tuple[str, ...]
    versions: dict[str, VersionRoots]


@dataclass
class RootFinder:
    """Finds the roots as often as it is asked; a seal is read once, a ledger again only when it has grown."""

    store: ArtifactStore
    tracker: Tracker
    locks: LeaseLockManager
    keep_days: float
    removed: dict[str, set[str]] = field(default_factory=dict, init=False)
    """By reference the records of versions that a ledger knows and the registry no longer has."""
    _ledgers: dict[str, LedgerRoots] = field(default_factory=dict, init=False)
    _sealed: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _strangers: set[str] = field(default_factory=set, init=False)
    """Runs of versions that resprout did not make."""

    def find(self) -> Roots:
        """Return all roots at this moment.

        Raises:
            VerificationFailed: a seal or ledger is damaged, so that no one knows what it names.
        """
        found = Roots()
        versions = self._registered()
        found.add_records(self._of_held(versions), HELD)
        found.add_records(self._of_versions(versions), REGISTERED)
        keep_seconds = self.keep_days * DAY_SECONDS
        begun = int((time.time() - keep_seconds) * 1000)
        found.add_records(self._of_recent(f"attributes.start_time > {begun}"), RECENT)
        recent_seals = [
            entry.key.removeprefix("seals/").removesuffix(".json")
            for entry in self.store.driver.entries("seals/")
            if entry.age_seconds < keep_seconds and not keys.is_stray(entry.key)
        ]
        found.add_records(self._of_seals(recent_seals), RECENT)
        in_use, _ = references(self.store.driver, self.locks.is_locked)
        found.digests = dict.fromkeys(in_use, IN_USE)
        found.erased.update(tombstones.erased(self.store.driver))
        self.removed = self._removed(versions)
        return found

    def held(self) -> set[str]:
        """Return the records under a legal hold."""
        return self._of_held(self._registered())

    def sealed(self) -> dict[str, tuple[str, ...]]:
        """Return by run the records that its seal names, for all seals."""
        runs = [run for (run,) in keys.own(self.store.driver, "seals")]
        self._of_seals(runs)
        return {run: self._sealed[run] for run in runs if run in self._sealed}

    def _registered(self) -> list[Any]:
        """Return all versions that the registry has; the ledgers are read before it is asked."""
        self._read_ledgers()
        return list(search.versions(self.tracker))

    def _removed(self, versions: Iterable[Any]) -> dict[str, set[str]]:
        there = {(one.name, str(one.version)) for one in versions}
        return {
            f"models:/{ledger.name}/{number}": roots.records | self._of_seals(roots.runs)
            for ledger in self._ledgers.values()
            for number, roots in sorted(ledger.versions.items(), key=lambda item: int(item[0]))
            if (ledger.name, number) not in there
        }

    def _of_held(self, versions: Iterable[Any]) -> set[str]:
        models = {one.name for one in search.models(self.tracker) if HOLD in one.tags}
        runs = self._of_runs(search.runs(self.tracker, f"tags.`{HOLD}` LIKE '%'"))
        return runs | self._of_versions(one for one in versions if HOLD in one.tags or one.name in models)

    def _of_versions(self, versions: Iterable[Any]) -> set[str]:
        """Return the records of exports and reports of versions, and of all that their runs made."""
        found = []
        for version in versions:
            roots = self._of_state(version.tags, version.source or "", version.run_id or "")
            for ledger in self._ledgers.values():
                if ledger.name == version.name and (known := ledger.versions.get(str(version.version))):
                    roots.records |= known.records
                    roots.runs |= known.runs
            found.append(roots)
        records = {record for roots in found for record in roots.records}
        records |= self._of_seals({run for roots in found for run in roots.runs})
        for roots in found:
            if not roots.records:
                records |= self._of_unsealed(roots.runs - self._sealed.keys() - self._strangers)
        return records

    def _of_unsealed(self, runs: Iterable[str]) -> set[str]:
        """Return the records of runs of which there is neither tag of a version, ledger nor seal."""
        found: set[str] = set()
        for identity in runs:
            try:
                run = self.tracker.run(identity)
            except BadInput:
                self._strangers.add(identity)
                continue
            if any(tag.startswith("resprout.") for tag in run.data.tags):
                found |= self._of_runs([run])
            else:
                self._strangers.add(identity)
        return found

    def _of_runs(self, runs: Iterable[Run]) -> set[str]:
        """Return the records of the runs, of those nested in them, and of their seals."""
        records: set[str] = set()
        for run in runs:
            identity = run.info.run_id
            nested = list(
                search.runs(self.tracker, f"tags.`{PARENT}` = '{identity}'", [run.info.experiment_id])
            )
            for one in (run, *nested):
                records |= self._of_tags(one.data.tags)
            records |= self._of_seals([identity])
            # Those of a sweep's variants have stages of their own.
            records |= self._of_runs(one for one in nested if STAGE not in one.data.tags)
        return records

    def _of_recent(self, begun: str) -> set[str]:
        """Return the records of recent runs, however they ended; nested ones began later than theirs."""
        records, parents = set(), set()
        for run in search.runs(self.tracker, begun):
            records |= self._of_tags(run.data.tags)
            if STAGE not in run.data.tags:
                parents.add(run.info.run_id)
        return records | self._of_seals(parents)

    def _of_seals(self, runs: Iterable[str]) -> set[str]:
        wanted = sorted(set(runs))
        unread = [run for run in wanted if run not in self._sealed]
        with ThreadPoolExecutor(THREADS) as pool:
            for run, seal in zip(
                unread, pool.map(lambda run: read_seal(self.store, run), unread), strict=True
            ):
                # A run that has no seal yet may get one.
                if seal is not None and seal.predicate["records"]:
                    self._sealed[run] = tuple(seal.predicate["records"])
        return {record for run in wanted for record in self._sealed.get(run, ())}

    def _of_tags(self, tags: Mapping[str, str]) -> set[str]:
        """Return the records that the tags of a version or a run name."""
        records = {tags[tag] for tag in (RECORD, REPORT_RECORD) if DIGEST.fullmatch(tags.get(tag, ""))}
        for tag, shorter in (("resprout.report", REPORT_RECORD), ("resprout.digest", RECORD)):
            if tags.get(shorter) not in records and DIGEST.fullmatch(tags.get(tag, "")):
                records.update(self.store.records_of(tags[tag]))
        return records

    def _of_state(self, tags: Mapping[str, str], source: str, run: str) -> VersionRoots:
        found = VersionRoots(self._of_tags(tags), {run, tags.get("resprout.run", "")} - {""})
        if not found.records:
            for digest in IN_SOURCE.findall(source):
                found.records.update(self.store.records_of(digest))
        return found

    def _read_ledgers(self) -> None:
        """Read the ledgers that have grown; VerificationFailed where one is damaged."""
        entries: dict[str, list[str]] = {}
        for key in self.store.driver.list("registry/"):
            if not keys.is_stray(key):
                entries.setdefault(key.split("/")[1], []).append(key)
        self._ledgers = {
            model: known
            if (known := self._ledgers.get(model)) is not None and known.keys == tuple(listed)
            else self._read_ledger(model, tuple(listed))
            for model, listed in entries.items()
        }

    def _read_ledger(self, model: str, listed: tuple[str, ...]) -> LedgerRoots:
        what = f"ledger entry {self.store.driver.uri(listed[0])}"
        opened = self.store.signer.open(self.store.driver.get_bytes(listed[0]) or b"", what)
        name = str((opened.statement.get("predicate") or {}).get("name"))
        if sha256_hex(name.encode()) != model:
            raise VerificationFailed(f"the {what} is that of another model, {name}")
        versions: dict[str, VersionRoots] = {}
        for entry in Ledger(self.store, name).entries():
            for number, state in (entry.predicate.get("versions") or {}).items():
                # Every state counts that it ever had, so no entry takes away what an earlier one needs.
                found = self._of_state(state.get("tags", {}), state.get("source", ""), state.get("runId", ""))
                roots = versions.setdefault(number, VersionRoots())
                roots.records |= found.records
                roots.runs |= found.runs
        return LedgerRoots(name, listed, versions)


@mlflow_errors
def set_hold(tracker: Tracker, reference: str, reason: str | None) -> None:
    """Put a legal hold, a tag in MLflow, on a version, a registered model or a run; without a reason lift it.

    Raises:
        BadInput: there is no such version, model or run.
    """
    client, rest = tracker.client, reference.removeprefix("models:/")
    at: tuple[str, ...]
    put: Any
    drop: Any
    if RUN_ID.match(reference):
        tags, at = tracker.run(reference).data.tags, (reference,)
        put, drop = client.set_tag, client.delete_tag
    elif reference.startswith("models:/") and ("@" in rest or "/" in rest):
        version = tracker.version(reference)
        tags, at = version.tags, (version.name, version.version)
        put, drop = client.set_model_version_tag, client.delete_model_version_tag
    elif reference.startswith("models:/"):
        model = None
        with allowing("RESOURCE_DOES_NOT_EXIST"):
            model = client.get_registered_model(rest)
        if model is None:
            raise BadInput(f"no registered model {rest} in {tracker.shown_uri}; give models:/name")
        tags, at = model.tags, (rest,)
        put, drop = client.set_registered_model_tag, client.delete_registered_model_tag
    else:
        raise BadInput(
            f"'{reference}' cannot be held; give models:/name/3, models:/name@alias, models:/name, or the id "
            "of an MLflow run"
        )
    if reason is not None:
        put(*at, HOLD, reason[:MAX_TAG_CHARS])
    elif HOLD in tags:
        drop(*at, HOLD)
