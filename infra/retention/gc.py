"""Garbage collection: plan what a store frees, then delete it after another look at each artifact.

The inventory comes from listings, by ids alone. The bodies of records are read only where a record is older
than the indexes. How a deletion stays out of the way of running writers is in `store/in_use.py`.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from resprout.configs.errors import BadInput, ResproutError, StageFailed, VerificationFailed
from resprout.infra.provenance.seal import write_collection
from resprout.infra.provenance.statement import provenance_key
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store import exports, in_use, keys
from resprout.infra.store.canonical import DIGEST, canonical_json
from resprout.infra.store.exports import WEIGHTS
from resprout.infra.store.filesystem import unsafe
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

logger = logging.getLogger(__name__)

BATCH = 100
"""Steps between two looks at the registry: writers wait for no more than these."""
THREADS = 8
LEASE = "gc"
"""Lease of the one gc, or backup, that may be at work on a store."""
YOUNG = "the grace period"
ERASED = "an erasure on record"


@dataclass
class Artifact:
    """An artifact's stored bytes and the seconds since the last of its objects was written."""

    size: int = 0
    age_seconds: float = float("inf")
    has_weights: bool = False
    """Whether there are weights in a folder of it, as in an export."""


@dataclass
class Inventory:
    """Artifacts by digest, records by id; `parents` goes from a record to those that it was made from."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)
    """Seconds since each record was written."""
    content: dict[str, str] = field(default_factory=dict)
    """Digest of what each record made."""
    parents: dict[str, list[str]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    """Keys of objects that no store wrote; they are left alone."""

    def made(self) -> dict[str, list[str]]:
        """Return the records that made each content."""
        found: dict[str, list[str]] = {}
        for record, digest in self.content.items():
            found.setdefault(digest, []).append(record)
        return found

    def lineage(self, records: Iterable[str]) -> set[str]:
        """Return the records and all their ancestors."""
        seen: set[str] = set()
        todo = list(records)
        while todo:
            record = todo.pop()
            if record not in seen:
                seen.add(record)
                todo.extend(self.parents.get(record, ()))
        return seen

    def learn(self, store: ArtifactStore, record_id: str) -> None:
        """Add a record that came after the listing, or before there were indexes, with all its ancestors."""
        todo = [record_id]
        while todo:
            one = todo.pop()
            if one in self.content:
                continue
            try:
                record = store.get_record(one)
            except BadInput:
                continue
            self.content[one] = record.content
            self.parents[one] = sorted({parent.record for parent in record.parents})
            self.ages.setdefault(one, 0.0)
            todo.extend(self.parents[one])


def take_inventory(store: ArtifactStore) -> Inventory:
    """List what is in a store now."""
    driver, found = store.driver, Inventory()
    for room in ("content", "manifests", "quarantine"):
        for entry in driver.entries(f"{room}/"):
            digest, _, path = entry.key.removeprefix(f"{room}/").removesuffix(".json").partition("/")
            if DIGEST.fullmatch(digest):
                artifact = found.artifacts.setdefault(digest, Artifact())
                artifact.size += entry.size
                artifact.age_seconds = min(artifact.age_seconds, entry.age_seconds)
                artifact.has_weights |= "/" in path and path.endswith(WEIGHTS)
    for entry in driver.entries("records/"):
        record = entry.key.removeprefix("records/").removesuffix(".json")
        if DIGEST.fullmatch(record):
            found.ages[record] = entry.age_seconds
    for digest, record in keys.own(driver, "made"):
        if record in found.ages:
            found.content[record] = digest
    for parent, child in keys.own(driver, "used"):
        if child in found.ages:
            found.parents.setdefault(child, []).append(parent)
    found.strays = keys.strays(driver)
    for record in found.ages.keys() - found.content.keys():
        found.learn(store, record)
    return found


@dataclass(frozen=True)
class Deletion:
    """One deletion: a record that no one needs, and with the last one of an artifact its content.

    Without a record it is content alone, of which there are no records, or they stay as proof of an erasure.
    """

    digest: str
    record: str | None
    with_content: bool


@dataclass
class CollectionPlan:
    """Steps in the order in which they may be taken: what was made from something goes before it."""

    steps: list[Deletion]
    freed: dict[str, int]
    """Bytes of each artifact whose content goes."""
    kept: Mapping[str, int]
    """Artifacts that stay, by reason."""
    records: frozenset[str]
    """Records that stay."""

    @property
    def freed_bytes(self) -> int:
        return sum(self.freed.values())


def plan_collection(inventory: Inventory, roots: Roots, grace_seconds: float) -> CollectionPlan:
    """CollectionPlan to keep the roots, what is young, and all ancestors of both, and to delete the rest."""
    made = inventory.made()
    why = _reasons(inventory, roots, made, grace_seconds)
    kept: dict[str, str] = {}
    for record, reason in why.items():
        if record in inventory.content:
            kept.setdefault(inventory.content[record], reason)
    for digest, artifact in inventory.artifacts.items():
        if digest in roots.digests:
            kept.setdefault(digest, roots.digests[digest])
        elif artifact.age_seconds < grace_seconds:
            kept.setdefault(digest, YOUNG)
    for digest in roots.erased & inventory.artifacts.keys():
        kept.setdefault(digest, ERASED)
    # Records that explain an erasure stay, what they made may go.
    explain = inventory.lineage(one for digest in roots.erased for one in made.get(digest, ())) - why.keys()
    stays = explain | why.keys()
    order = _heights(inventory)
    dead = sorted((record for record in inventory.content if record not in stays), key=lambda one: order[one])
    left = Counter(inventory.content[record] for record in dead)
    emptied = {inventory.content[one] for one in explain & inventory.content.keys()} - kept.keys()
    steps = []
    for record in dead:
        digest = inventory.content[record]
        left[digest] -= 1
        last = left[digest] == 0 and digest not in kept and digest not in emptied
        steps.append(Deletion(digest, record, last))
    orphans = inventory.artifacts.keys() - kept.keys() - made.keys()
    alone = orphans | emptied & inventory.artifacts.keys()
    steps += [Deletion(digest, None, True) for digest in sorted(alone)]
    freed = {
        step.digest: inventory.artifacts.get(step.digest, Artifact()).size
        for step in steps
        if step.with_content
    }
    return CollectionPlan(steps, freed, Counter(kept.values()), frozenset(stays))


def _reasons(
    inventory: Inventory, roots: Roots, made: Mapping[str, list[str]], grace_seconds: float
) -> dict[str, str]:
    """Return every record that stays, with the reason of the root that needs it."""
    needed = dict(roots.records)
    for digest, reason in roots.digests.items():
        for record in made.get(digest, ()):
            needed.setdefault(record, reason)
    for record, age in inventory.ages.items():
        artifact = inventory.artifacts.get(inventory.content.get(record, ""), Artifact())
        if min(age, artifact.age_seconds) < grace_seconds:
            needed.setdefault(record, YOUNG)
    why: dict[str, str] = {}
    by_reason: dict[str, list[str]] = {}
    for record, reason in needed.items():
        by_reason.setdefault(reason, []).append(record)
    for reason, records in by_reason.items():
        for record in inventory.lineage(records):
            why.setdefault(record, reason)
    return why


def _heights(inventory: Inventory) -> dict[str, int]:
    """Return for each record the longest path to one made from it, so that children sort before parents."""
    waiting = Counter(parent for parents in inventory.parents.values() for parent in parents)
    heights = dict.fromkeys(inventory.content, 0)
    ready = [record for record in heights if not waiting[record]]
    while ready:
        record = ready.pop()
        for parent in inventory.parents.get(record, ()):
            heights[parent] = max(heights.get(parent, 0), heights[record] + 1)
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return heights


@dataclass
class Collector:
    """One garbage collection; `find_roots` is called again before each batch.

    `sealed` names the records of each sealed run: what is deleted of them is stated before, and seals stay.
    """

    store: ArtifactStore
    locks: LeaseLockManager
    inventory: Inventory
    find_roots: Callable[[], Roots]
    progress: Callable[[int, int], None] = lambda done, total: None
    sealed: Mapping[str, Iterable[str]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list, init=False)
    """Digests whose content was deleted."""
    records: list[str] = field(default_factory=list, init=False)
    """Records that were deleted."""
    _spared: set[str] = field(default_factory=set, init=False)
    """Records that are needed after all, and digests of which all records are."""
    _explaining: set[str] = field(default_factory=set, init=False)
    """Records that explain an erasure: they stay, what they made may go."""
    _holding: set[str] = field(default_factory=set, init=False)
    """Digests whose content a needed record holds."""

    def __post_init__(self) -> None:
        self.driver = self.store.driver
        self.name = f"gc-{uuid.uuid4().hex}"
        self._runs: dict[str, list[str]] = {}
        """By record the sealed runs that name it."""
        for run, records in self.sealed.items():
            for record in records:
                self._runs.setdefault(record, []).append(run)

    def run(self, plan: CollectionPlan) -> None:
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

    def _batch(self, steps: list[Deletion]) -> None:
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

    def _state(self, steps: list[Deletion]) -> None:
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
        living, dead = in_use.references(self.driver, self._is_alive)
        self.driver.delete_all(dead)
        return living

    def _is_alive(self, writer: str) -> bool:
        """Whether a writer lives; a dead one loses its lease, which it notices should it wake up."""
        if not self.locks.acquire_lock(writer, self.name, acquire_timeout=0):
            return True
        self.locks.retire(writer, self.name)
        return False

    def _delete(self, step: Deletion) -> None:
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
            pointer = {"digest": self.store.get_record(heir).content, "record": heir}
            self.store.driver.put_bytes(name, canonical_json(pointer))

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
