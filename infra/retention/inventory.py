"""What is in a store, by ids alone: sizes and ages of artifacts, and which record has which parents.

Everything comes from listings. The bodies of records are read only where a record is older than the indexes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from resprout.configs.errors import BadInput
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.exports import WEIGHTS
from resprout.infra.store.keys import own, strays
from resprout.infra.store.store import ArtifactStore

NEVER = float("inf")


@dataclass
class Artifact:
    """An artifact's stored bytes and the seconds since the last of its objects was written."""

    size: int = 0
    age_seconds: float = NEVER
    has_weights: bool = False
    """Whether there are weights in a folder of it, as in an export."""

    def add(self, size: int, age_seconds: float) -> None:
        """Count one object more."""
        self.size += size
        self.age_seconds = min(self.age_seconds, age_seconds)


@dataclass
class Inventory:
    """Artifacts by digest, records by id; `parents` goes from a record to those that it was made from."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)
    """Seconds since each record was written."""
    content: dict[str, str] = field(default_factory=dict)
    """What each record made."""
    parents: dict[str, list[str]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    """Keys of objects that no store wrote; they are in nobody's way and are left alone."""

    def made(self) -> dict[str, list[str]]:
        """The records that made each content."""
        found: dict[str, list[str]] = {}
        for record, digest in self.content.items():
            found.setdefault(digest, []).append(record)
        return found

    def lineage(self, records: Iterable[str]) -> set[str]:
        """The records and all behind them."""
        seen: set[str] = set()
        todo = list(records)
        while todo:
            record = todo.pop()
            if record not in seen:
                seen.add(record)
                todo.extend(self.parents.get(record, ()))
        return seen

    def learn(self, store: ArtifactStore, record_id: str) -> None:
        """Take in a record that came after the listing, or before there were indexes, with all behind it."""
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


def take(store: ArtifactStore) -> Inventory:
    """The inventory of a store as it is now."""
    driver, found = store.driver, Inventory()
    for entry in driver.entries("content/"):
        digest, _, path = entry.key.removeprefix("content/").partition("/")
        if DIGEST.fullmatch(digest):
            artifact = found.artifacts.setdefault(digest, Artifact())
            artifact.add(entry.size, entry.age_seconds)
            artifact.has_weights |= "/" in path and path.endswith(WEIGHTS)
    for room in ("manifests/", "quarantine/"):
        for entry in driver.entries(room):
            digest = entry.key.removeprefix(room).removesuffix(".json")
            if DIGEST.fullmatch(digest):
                found.artifacts.setdefault(digest, Artifact()).add(entry.size, entry.age_seconds)
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
        age = found.ages[record]
        found.learn(store, record)
        found.ages[record] = age
    return found
