"""Who needs what: registered versions, legal holds, runs of late, living writers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.infra import searches
from resprout.infra.proof.seal import read_seal
from resprout.infra.retention.plan import Needs
from resprout.infra.retention.versions import Versions
from resprout.infra.store import keys, tombstones
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import HOLD, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

THREADS = 8
DAY_SECONDS = 86400.0
REGISTERED, HELD, LATE, PINNED = (
    "a registered version",
    "a legal hold",
    "a run of late",
    "a living writer",
)


class Look:
    """Looks at registry, runs, seals and pins as often as it is asked; a seal is read once."""

    def __init__(
        self, store: ArtifactStore, tracker: Tracker, locks: LeaseLockManager, keep_days: float
    ) -> None:
        self.store = store
        self.tracker = tracker
        self.locks = locks
        self.keep_seconds = keep_days * DAY_SECONDS
        self.removed: dict[str, set[str]] = {}
        """By reference the records of versions that a ledger knows and the registry no longer has."""
        self._versions = Versions(store)
        self._sealed: dict[str, tuple[str, ...]] = {}
        self._strangers: set[str] = set()
        """Runs of versions that resprout did not make."""

    def needs(self) -> Needs:
        """All that somebody needs at this moment.

        Raises:
            VerificationFailed: a seal or ledger is damaged, so that nobody knows what it names.
        """
        found = Needs()
        versions = self._registered()
        found.add_records(self._held(versions), HELD)
        found.add_records(self._of_versions(versions), REGISTERED)
        late = int((time.time() - self.keep_seconds) * 1000)
        found.add_records(self._of_late(f"attributes.start_time > {late}"), LATE)
        found.add_records(self._of_seals(self._late_seals()), LATE)
        found.add_digests(self.pinned(), PINNED)
        found.erased.update(tombstones.erased(self.store.driver))
        there: dict[str, set[str]] = {}
        for one in versions:
            there.setdefault(one.name, set()).add(str(one.version))
        gone = self._versions.removed(there)
        self.removed = {ref: claim.records | self._of_seals(claim.runs) for ref, claim in gone.items()}
        return found

    def pinned(self) -> Iterator[str]:
        """Digests that a living writer relies on."""
        alive: dict[str, bool] = {}
        for digest, writer in keys.own(self.store.driver, "pins"):
            if writer not in alive:
                alive[writer] = self.locks.is_locked(writer)
            if alive[writer]:
                yield digest

    def sealed(self) -> dict[str, tuple[str, ...]]:
        """By run the records that its seal names, for all seals."""
        runs = [run for (run,) in keys.own(self.store.driver, "seals")]
        self._of_seals(runs)
        return {run: self._sealed[run] for run in runs if run in self._sealed}

    def held(self) -> set[str]:
        """Records under a legal hold."""
        return self._held(self._registered())

    def _registered(self) -> list[Any]:
        """All versions that the registry has; the ledgers are read before it is asked."""
        self._versions.look()
        return list(searches.versions(self.tracker))

    def _held(self, versions: Iterable[Any]) -> set[str]:
        models = {one.name for one in searches.models(self.tracker) if HOLD in one.tags}
        runs = self._of_runs(searches.runs(self.tracker, f"tags.`{HOLD}` LIKE '%'"))
        return runs | self._of_versions(one for one in versions if HOLD in one.tags or one.name in models)

    def _of_versions(self, versions: Iterable[Any]) -> set[str]:
        """Exports and reports of versions, and what their runs made."""
        claims = [self._versions.claim(version) for version in versions]
        records = {record for claim in claims for record in claim.records}
        records |= self._of_seals({run for claim in claims for run in claim.runs})
        for claim in claims:
            if not claim.records:
                records |= self._of_unsealed(claim.runs - self._sealed.keys() - self._strangers)
        return records

    def _of_unsealed(self, runs: Iterable[str]) -> set[str]:
        """Records of runs of which there is neither tag of a version, ledger nor seal."""
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
        """Records of the runs, of those nested in them, and of their seals."""
        records: set[str] = set()
        for run in runs:
            identity = run.info.run_id
            nested = searches.runs(
                self.tracker, f"tags.`mlflow.parentRunId` = '{identity}'", [run.info.experiment_id]
            )
            for one in (run, *nested):
                records |= self._versions.of_tags(one.data.tags)
            records |= self._of_seals([identity])
        return records

    def _of_late(self, begun: str) -> set[str]:
        """Records of runs that began of late, however they ended; nested ones began later than theirs."""
        records, parents = set(), set()
        for run in searches.runs(self.tracker, begun):
            records |= self._versions.of_tags(run.data.tags)
            if "mlflow.parentRunId" not in run.data.tags:
                parents.add(run.info.run_id)
        return records | self._of_seals(parents)

    def _late_seals(self) -> list[str]:
        return [
            entry.key.removeprefix("seals/").removesuffix(".json")
            for entry in self.store.driver.entries("seals/")
            if entry.age_seconds < self.keep_seconds and not keys.is_stray(entry.key)
        ]

    def _of_seals(self, runs: Iterable[str]) -> set[str]:
        wanted = sorted(set(runs))
        unread = [run for run in wanted if run not in self._sealed]
        with ThreadPoolExecutor(THREADS) as pool:
            for run, records in zip(unread, pool.map(self._named, unread), strict=True):
                # A run that has no seal yet may get one.
                if records:
                    self._sealed[run] = records
        return {record for run in wanted for record in self._sealed.get(run, ())}

    def _named(self, run: str) -> tuple[str, ...]:
        """Records that the seal of a run names; none where it has no seal."""
        seal = read_seal(self.store, run)
        return () if seal is None else tuple(seal.said["records"])
