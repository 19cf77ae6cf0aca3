"""What a gc would keep, and why, and what it would free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from resprout.infra.retention.inventory import Inventory

YOUNG = "the grace period"
ERASED = "an erasure on record"


@dataclass
class Needs:
    """Records and digests that somebody needs, with the reason; the first reason found is told."""

    records: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    """Digests of which something was erased: they stay, and of what they were made from the records."""

    def add_records(self, records: Iterable[str], reason: str) -> None:
        """Note records."""
        for record in records:
            self.records.setdefault(record, reason)

    def add_digests(self, digests: Iterable[str], reason: str) -> None:
        """Note digests, which stand for all records that made them."""
        for digest in digests:
            self.digests.setdefault(digest, reason)


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


def plan(inventory: Inventory, needs: Needs, grace_seconds: float) -> Plan:
    """Who stays is who is needed, who is young, and all behind them; the rest goes."""
    made = inventory.made()
    why = keepers(inventory, needs, made, grace_seconds)
    kept: dict[str, str] = {}
    for record, reason in why.items():
        if record in inventory.content:
            kept.setdefault(inventory.content[record], reason)
    for digest, artifact in inventory.artifacts.items():
        if digest in needs.digests:
            kept.setdefault(digest, needs.digests[digest])
        elif artifact.age_seconds < grace_seconds:
            kept.setdefault(digest, YOUNG)
    for digest in needs.erased & inventory.artifacts.keys():
        kept.setdefault(digest, ERASED)
    told = inventory.lineage(one for digest in needs.erased for one in made.get(digest, ())) - why.keys()
    stays = told | why.keys()
    order = _heights(inventory)
    dead = sorted((record for record in inventory.content if record not in stays), key=lambda one: order[one])
    left = Counter(inventory.content[record] for record in dead)
    emptied = {inventory.content[one] for one in told & inventory.content.keys()} - kept.keys()
    steps = []
    for record in dead:
        digest = inventory.content[record]
        left[digest] -= 1
        steps.append(Step(digest, record, left[digest] == 0 and digest not in kept and digest not in emptied))
    orphans = inventory.artifacts.keys() - kept.keys() - made.keys()
    steps += [Step(digest, None, True) for digest in sorted(orphans | emptied & inventory.artifacts.keys())]
    freed = {
        step.digest: inventory.artifacts[step.digest].size if step.digest in inventory.artifacts else 0
        for step in steps
        if step.with_content
    }
    return Plan(steps, freed, Counter(kept.values()), frozenset(stays))


def keepers(
    inventory: Inventory, needs: Needs, made: Mapping[str, list[str]], grace_seconds: float
) -> dict[str, str]:
    """Every record that stays, with the reason of the one that needs it."""
    roots = dict(needs.records)
    for digest, reason in needs.digests.items():
        for record in made.get(digest, ()):
            roots.setdefault(record, reason)
    for record, age in inventory.ages.items():
        if age < grace_seconds:
            roots.setdefault(record, YOUNG)
    for digest, records in made.items():
        artifact = inventory.artifacts.get(digest)
        if artifact is not None and artifact.age_seconds < grace_seconds:
            for record in records:
                roots.setdefault(record, YOUNG)
    why: dict[str, str] = {}
    by_reason: dict[str, list[str]] = {}
    for record, reason in roots.items():
        by_reason.setdefault(reason, []).append(record)
    for reason, records in by_reason.items():
        for record in inventory.lineage(records):
            why.setdefault(record, reason)
    return why


def _heights(inventory: Inventory) -> dict[str, int]:
    """For each record the length of the longest way to something made from it: children before parents."""
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
