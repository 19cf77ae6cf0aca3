"""The plan of a garbage collection: what a store holds, what of it is kept and why, and what would be freed.

The inventory comes from listings, by ids alone. The bodies of records are read only where a record is older
than the indexes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from resprout.configs.errors import BadInput
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.exports import WEIGHTS
from resprout.infra.store.keys import own, strays
from resprout.infra.store.store import ArtifactStore

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
    for digest, record in own(driver, "made"):
        if record in found.ages:
            found.content[record] = digest
    for parent, child in own(driver, "used"):
        if child in found.ages:
            found.parents.setdefault(child, []).append(parent)
    found.strays = strays(driver)
    for record in found.ages.keys() - found.content.keys():
        found.learn(store, record)
    return found


@dataclass(frozen=True)
class Step:
    """One deletion: a record that nobody needs, and with the last one of an artifact its content.

    Without a record it is content alone, of which there are no records, or they stay to tell of an erasure.
    """

    digest: str
    record: str | None
    with_content: bool


@dataclass
class Plan:
    """Steps in the order in which they may be taken: what was made from something goes before it."""

    steps: list[Step]
    freed: dict[str, int]
    """Bytes of each artifact whose content goes."""
    kept: Mapping[str, int]
    """Artifacts that stay, by reason."""
    records: frozenset[str]
    """Records that stay."""

    @property
    def freed_bytes(self) -> int:
        return sum(self.freed.values())


def plan_collection(inventory: Inventory, roots: Roots, grace_seconds: float) -> Plan:
    """Plan to keep the roots, what is young, and all ancestors of both, and to delete the rest."""
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
        steps.append(Step(digest, record, left[digest] == 0 and digest not in kept and digest not in emptied))
    orphans = inventory.artifacts.keys() - kept.keys() - made.keys()
    steps += [Step(digest, None, True) for digest in sorted(orphans | emptied & inventory.artifacts.keys())]
    freed = {
        step.digest: inventory.artifacts.get(step.digest, Artifact()).size
        for step in steps
        if step.with_content
    }
    return Plan(steps, freed, Counter(kept.values()), frozenset(stays))


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
