"""Deletes what a plan frees, and looks again at each artifact right before (for why: `store/in_use.py`)."""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from resprout.configs.errors import BadInput, ResproutError, StageFailed
from resprout.infra.proof.collected import state_collected
from resprout.infra.proof.provenance import provenance_key
from resprout.infra.retention.inventory import Inventory
from resprout.infra.retention.plan import Needs, Plan, Step
from resprout.infra.retention.successors import Successors
from resprout.infra.store import in_use, keys
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

logger = logging.getLogger(__name__)

BATCH = 100
"""Steps between two looks at the registry: writers wait for no more than these."""
THREADS = 8
ONE = "gc"
"""Lease of the one gc, or backup, that may be at work on a store."""


class Collector:
    """One gc at work: `needs` looks again at who needs what.

    `sealed` names the records of each sealed run: what goes of them is stated before it goes, and seals stay.
    """

    def __init__(
        self,
        store: ArtifactStore,
        locks: LeaseLockManager,
        inventory: Inventory,
        needs: Callable[[], Needs],
        progress: Callable[[int, int], None] = lambda done, total: None,
        sealed: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.store = store
        self.driver = store.driver
        self.locks = locks
        self.inventory = inventory
        self.needs = needs
        self.progress = progress
        self.name = f"gc-{uuid.uuid4().hex}"
        self._successors = Successors(store, inventory, ())
        self._spared: set[str] = set()
        """Records that turned out to be needed, and digests of which all are."""
        self._told: set[str] = set()
        """Records that tell of an erasure: they stay, what they made may go."""
        self._holding: set[str] = set()
        """Digests whose content a needed record holds."""
        self._runs: dict[str, list[str]] = {}
        """By record the sealed runs that name it."""
        for run, records in (sealed or {}).items():
            for record in records:
                self._runs.setdefault(record, []).append(run)
        self.deleted: list[str] = []
        """Digests whose content is gone."""
        self.records: list[str] = []
        """Records that are gone."""

    def run(self, plan: Plan) -> None:
        """Take the plan's steps.

        Raises:
            BadInput: another gc is at work on this store.
            StageFailed: this one was paused for longer than its lease.
        """
        with self._alone():
            self._clean_marks()
            self._pinned()
            self._successors = Successors(self.store, self.inventory, plan.records)
            done, total = 0, len(plan.steps)
            for batch in _batches(plan.steps):
                self._batch(batch)
                done += len(batch)
                self.progress(done, total)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self.locks.acquire_lock(ONE, self.name, acquire_timeout=0):
            raise BadInput(f"another gc or a backup is at work on {self.store.root_uri}; wait for it")
        try:
            self.locks.acquire_lock(self.name, self.name, acquire_timeout=0)
            yield
        finally:
            for lease in (self.name, ONE):
                try:
                    self.locks.retire(lease, self.name)
                except (ResproutError, ValueError) as error:
                    logger.warning("the lease of this gc was not given back and will expire: %s", error)

    def _batch(self, steps: list[Step]) -> None:
        marked = [digest for digest in sorted({step.digest for step in steps}) if self._mark(digest)]
        try:
            self._look_again(marked)
            taken = [step for step in steps if step.digest in marked and not self._is_spared(step)]
            self._state(taken)
            for step in taken:
                self._take(step)
        finally:
            # A gc that lost its lease must not take away another's marks.
            for digest in marked:
                if in_use.mark_owner(self.driver, digest) == self.name:
                    self.driver.delete(in_use.mark_key(digest))

    def _is_spared(self, step: Step) -> bool:
        return bool({step.record, step.digest} & self._spared) or step.record in self._told

    def _state(self, steps: list[Step]) -> None:
        """Write beside the seals what goes of what they name: `verify` then knows why it is not there."""
        made = self.inventory.made()
        going: dict[str, set[str]] = {}
        for step in steps:
            emptied = () if step.digest in self._holding else made.get(step.digest, ())
            for record in [step.record] if step.record is not None else emptied:
                for run in self._runs.get(record, ()):
                    going.setdefault(run, set()).add(record)
        self._require_lease()
        for run, records in sorted(going.items()):
            state_collected(self.store, run, records)

    def _mark(self, digest: str) -> bool:
        if in_use.mark(self.driver, digest, self.name):
            return True
        owner = in_use.mark_owner(self.driver, digest)
        if owner is not None and not in_use.clear_dead_mark(self.driver, self.locks, digest, owner):
            return False
        return in_use.mark(self.driver, digest, self.name)

    def _look_again(self, marked: list[str]) -> None:
        """Spare what is needed now: after the marks, so that no writer comes unseen."""
        pinned = self._pinned()
        now = self.needs()
        made = self.inventory.made()
        needed = set(now.records)
        with ThreadPoolExecutor(THREADS) as pool:
            looked = list(pool.map(self.store.records_of, marked))
        for digest, records in zip(marked, looked, strict=True):
            fresh = set(records) - set(made.get(digest, ()))
            if digest in pinned or fresh or digest in now.digests or digest in now.erased:
                self._spared.add(digest)
                needed |= {*records, *made.get(digest, ())}
        erased = [record for digest in now.erased for record in made.get(digest, ())]
        self._told |= self.inventory.lineage(erased)
        for record in needed - self.inventory.content.keys():
            self.inventory.learn(self.store, record)
        needed = self.inventory.lineage(needed)
        self._spared |= needed
        self._holding |= {self.inventory.content[one] for one in needed & self.inventory.content.keys()}

    def _pinned(self) -> set[str]:
        """Digests that a living writer relies on; the references of dead ones are taken away."""
        alive: dict[str, bool] = {}
        living, dead = set(), []
        for digest, writer in keys.own(self.driver, "pins"):
            if writer not in alive:
                alive[writer] = not self._is_dead(writer)
            if alive[writer]:
                living.add(digest)
            else:
                dead.append(f"{in_use.references_to(digest)}{writer}")
        self.driver.delete_all(dead)
        return living

    def _is_dead(self, writer: str) -> bool:
        """Whether a writer is gone; its lease was then ours, so that it knows should it wake up."""
        if not self.locks.acquire_lock(writer, self.name, acquire_timeout=0):
            return False
        self.locks.retire(writer, self.name)
        return True

    def _take(self, step: Step) -> None:
        store, driver, digest = self.store, self.driver, step.digest
        with_content = step.with_content and digest not in self._holding
        self._require_lease()
        if with_content:
            self._successors.of_export(digest)
            driver.delete_all([f"manifests/{digest}.json", f"quarantine/{digest}.json"])
        if step.record is not None:
            self._successors.of_result(step.record, digest)
        if with_content:
            self._require_lease()
            driver.delete_folder(f"content/{digest}")
            store.forget(digest)
            self.deleted.append(digest)
        if step.record is not None:
            parents = self.inventory.parents.get(step.record, ())
            signatures = driver.list(f"signatures/{step.record}/")
            beside = [f"made/{digest}/{step.record}", *(f"used/{parent}/{step.record}" for parent in parents)]
            self._require_lease()
            stated = provenance_key(step.record)
            driver.delete_all([f"records/{step.record}.json", *beside, *signatures, stated])
            self.records.append(step.record)

    def _require_lease(self) -> None:
        if not self.locks.still_held(self.name):
            raise StageFailed(
                "this gc was paused for longer than its lease, so a writer may have taken over what it was "
                "about to delete; run it again: it goes on from there"
            )

    def _clean_marks(self) -> None:
        """Take away the marks of gcs that died."""
        for (digest,) in keys.own(self.driver, "gc"):
            if (owner := in_use.mark_owner(self.driver, digest)) is not None:
                in_use.clear_dead_mark(self.driver, self.locks, digest, owner)


def _batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    left = iter(steps)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch
