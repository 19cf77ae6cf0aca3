"""Garbage collection: delete what a plan frees, after another look at each artifact (`store/in_use.py`)."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from resprout.configs.errors import BadInput, ResproutError, StageFailed, VerificationFailed
from resprout.infra.provenance.seal import write_collection
from resprout.infra.provenance.statement import provenance_key
from resprout.infra.retention.gc_plan import Inventory, Plan, Step
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store import exports, in_use, keys
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.filesystem import unsafe
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

logger = logging.getLogger(__name__)

BATCH = 100
"""Steps between two looks at the registry: writers wait for no more than these."""
THREADS = 8
LEASE = "gc"
"""Lease of the one gc, or backup, that may be at work on a store."""


class Collector:
    """One garbage collection; `find_roots` is called again before each batch.

    `sealed` names the records of each sealed run: what is deleted of them is stated before, and seals stay.
    """

    def __init__(
        self,
        store: ArtifactStore,
        locks: LeaseLockManager,
        inventory: Inventory,
        find_roots: Callable[[], Roots],
        progress: Callable[[int, int], None] = lambda done, total: None,
        sealed: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.store = store
        self.driver = store.driver
        self.locks = locks
        self.inventory = inventory
        self.find_roots = find_roots
        self.progress = progress
        self.name = f"gc-{uuid.uuid4().hex}"
        self._redirects = Redirects(store, inventory, ())
        self._spared: set[str] = set()
        """Records that are needed after all, and digests of which all records are."""
        self._explaining: set[str] = set()
        """Records that explain an erasure: they stay, what they made may go."""
        self._holding: set[str] = set()
        """Digests whose content a needed record holds."""
        self._runs: dict[str, list[str]] = {}
        """By record the sealed runs that name it."""
        for run, records in (sealed or {}).items():
            for record in records:
                self._runs.setdefault(record, []).append(run)
        self.deleted: list[str] = []
        """Digests whose content was deleted."""
        self.records: list[str] = []
        """Records that were deleted."""

    def run(self, plan: Plan) -> None:
        """Delete what the plan frees.

        Raises:
            BadInput: another gc is at work on this store.
            StageFailed: this one was paused for longer than its lease.
        """
        with self._alone():
            self._clean_marks()
            self._in_use()
            self._redirects = Redirects(self.store, self.inventory, plan.records)
            for start in range(0, len(plan.steps), BATCH):
                self._batch(plan.steps[start : start + BATCH])
                self.progress(min(start + BATCH, len(plan.steps)), len(plan.steps))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self.locks.acquire_lock(LEASE, self.name, acquire_timeout=0):
            raise BadInput(f"another gc or a backup is at work on {self.store.root_uri}; wait for it")
        try:
            self.locks.acquire_lock(self.name, self.name, acquire_timeout=0)
            yield
        finally:
            for lease in (self.name, LEASE):
                try:
                    self.locks.retire(lease, self.name)
                except (ResproutError, ValueError) as error:
                    logger.warning("the lease of this gc was not given back and will expire: %s", error)

    def _batch(self, steps: list[Step]) -> None:
        marked = [digest for digest in sorted({step.digest for step in steps}) if self._mark(digest)]
        try:
            self._look_again(marked)
            kept = self._spared | self._explaining
            chosen = [
                step
                for step in steps
                if step.digest in marked and step.digest not in self._spared and step.record not in kept
            ]
            self._state(chosen)
            for step in chosen:
                self._delete(step)
        finally:
            # A gc that lost its lease must not take away another's marks.
            for digest in marked:
                if in_use.mark_owner(self.driver, digest) == self.name:
                    self.driver.delete(in_use.mark_key(digest))

    def _state(self, steps: list[Step]) -> None:
        """State beside the seals which of their records are deleted, so that `verify` can explain it."""
        made = self.inventory.made()
        going: dict[str, set[str]] = {}
        for step in steps:
            emptied = () if step.digest in self._holding else made.get(step.digest, ())
            for record in [step.record] if step.record is not None else emptied:
                for run in self._runs.get(record, ()):
                    going.setdefault(run, set()).add(record)
        self._require_lease()
        for run, records in sorted(going.items()):
            write_collection(self.store, run, records)

    def _mark(self, digest: str) -> bool:
        if in_use.mark(self.driver, digest, self.name):
            return True
        owner = in_use.mark_owner(self.driver, digest)
        if owner is not None and not in_use.clear_dead_mark(self.driver, self.locks, digest, owner):
            return False
        return in_use.mark(self.driver, digest, self.name)

    def _look_again(self, marked: list[str]) -> None:
        """Spare what is needed now; called after the marks are set, so that no writer is missed."""
        used = self._in_use()
        now = self.find_roots()
        made = self.inventory.made()
        needed = set(now.records)
        with ThreadPoolExecutor(THREADS) as pool:
            looked = list(pool.map(self.store.records_of, marked))
        for digest, records in zip(marked, looked, strict=True):
            fresh = set(records) - set(made.get(digest, ()))
            if digest in used or fresh or digest in now.digests or digest in now.erased:
                self._spared.add(digest)
                needed |= {*records, *made.get(digest, ())}
        erased = [record for digest in now.erased for record in made.get(digest, ())]
        self._explaining |= self.inventory.lineage(erased)
        for record in needed - self.inventory.content.keys():
            self.inventory.learn(self.store, record)
        needed = self.inventory.lineage(needed)
        self._spared |= needed
        self._holding |= {self.inventory.content[one] for one in needed & self.inventory.content.keys()}

    def _in_use(self) -> set[str]:
        """Return the digests that a living writer relies on; the references of dead ones are removed."""
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
        """Whether a writer is dead; its lease is then taken over, which it notices should it wake up."""
        if not self.locks.acquire_lock(writer, self.name, acquire_timeout=0):
            return False
        self.locks.retire(writer, self.name)
        return True

    def _delete(self, step: Step) -> None:
        store, driver, digest = self.store, self.driver, step.digest
        with_content = step.with_content and digest not in self._holding
        self._require_lease()
        if with_content:
            self._redirects.redirect_export(digest)
            driver.delete_all([f"manifests/{digest}.json", f"quarantine/{digest}.json"])
        if step.record is not None:
            self._redirects.redirect_result(step.record, digest)
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
        """Remove the marks of gcs that died."""
        for (digest,) in keys.own(self.driver, "gc"):
            if (owner := in_use.mark_owner(self.driver, digest)) is not None:
                in_use.clear_dead_mark(self.driver, self.locks, digest, owner)


class Redirects:
    """Redirects cache entries and notes on weights from what is deleted to an equal artifact that stays.

    A record or manifest is read once, and only where it may matter. `staying` are the records that the plan
    keeps: they are preferred over others that are still there.
    """

    def __init__(self, store: ArtifactStore, inventory: Inventory, staying: Iterable[str]) -> None:
        self.store = store
        self.inventory = inventory
        self.staying = frozenset(staying)
        self._keys: dict[str, str | None] = {}
        self._by_weights: dict[str, list[str]] | None = None
        self._made = inventory.made()
        self._children: dict[str, list[str]] = {}
        self._first: list[str] = []
        for record in inventory.content:
            parents = inventory.parents.get(record, ())
            for parent in parents:
                self._children.setdefault(parent, []).append(record)
            if not parents:
                self._first.append(record)

    def redirect_result(self, record_id: str, digest: str) -> None:
        """Point the cache entry of the record's stage, where it is this record's, to another record.

        That is one of the same key, whatever it made; where there is none, the entry is removed.
        """
        key = self._key(record_id)
        name = f"results/{key}"
        data = None if key is None or unsafe(key) else self.store.driver.get_bytes(name)
        if data is None or record_id.encode() not in data:
            return
        near = {*self._kin(record_id), *self.store.records_of(digest)} - {record_id}
        same = (one for one in near if self._key(one) == key and self.store.has_record(one))
        heir = max(same, key=lambda one: (one in self.staying, one), default=None)
        if heir is None:
            self.store.driver.delete(name)
        else:
            said = {"digest": self.store.get_record(heir).content, "record": heir}
            self.store.driver.put_bytes(name, canonical_json(said))

    def redirect_export(self, digest: str) -> None:
        """Point the notes on an export's weights to another export with the same, or remove them."""
        artifact = self.inventory.artifacts.get(digest)
        if artifact is None or not artifact.has_weights:
            return
        for name, folder in self._names(digest).items():
            if self.store.driver.get_bytes(name) == exports.noted(digest, folder):
                heir = self._same_weights(name, digest)
                if heir is None:
                    self.store.driver.delete(name)
                else:
                    held = exports.names(self.store.manifest(heir).files)
                    self.store.driver.put_bytes(name, exports.noted(heir, held[name]))

    def _kin(self, record_id: str) -> Iterable[str]:
        """Return the records that may have the key of this one: a key covers the content of the parents."""
        parents = self.inventory.parents.get(record_id, ())
        if not parents:
            return self._first
        twins = self._made.get(self.inventory.content.get(parents[0], ""), [])
        return (child for twin in twins for child in self._children.get(twin, ()))

    def _key(self, record_id: str) -> str | None:
        """Return the stage's key in a record; None where it cannot be read."""
        if record_id not in self._keys:
            try:
                self._keys[record_id] = self.store.get_record(record_id).key
            except (BadInput, VerificationFailed):
                self._keys[record_id] = None
        return self._keys[record_id]

    def _same_weights(self, name: str, digest: str) -> str | None:
        if self._by_weights is None:
            self._by_weights = {}
            held = [one for one, artifact in self.inventory.artifacts.items() if artifact.has_weights]
            with ThreadPoolExecutor(THREADS) as pool:
                for one, names in zip(held, pool.map(self._names, held), strict=True):
                    for found in names:
                        self._by_weights.setdefault(found, []).append(one)
        left = [one for one in self._by_weights.get(name, ()) if one != digest and self._is_export(one)]
        return max(
            left, key=lambda one: (not self.staying.isdisjoint(self._made.get(one, ())), one), default=None
        )

    def _names(self, digest: str) -> dict[str, str]:
        try:
            return exports.names(self.store.manifest(digest).files)
        except (BadInput, VerificationFailed):
            return {}

    def _is_export(self, digest: str) -> bool:
        """Whether it is still there, and a record says that it was exported."""
        if self.store.driver.head(f"manifests/{digest}.json") is None:
            return False
        try:
            records = map(self.store.get_record, self.store.records_of(digest))
            return any(record.stage == "export" for record in records)
        except (BadInput, VerificationFailed):
            return False
