"""Descendants of a source, a data set or an artifact: all records and versions made from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.audit.lineage import origin_record
from resprout.flows.audit.render import printable
from resprout.flows.workspace import DIGEST, RUN_ID, Workspace, find
from resprout.infra.lineage import sources
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.store import keys
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from rich.tree import Tree

THREADS = 8
SHORT = 12
MOST_SHOWN = 100
"""Records that the terminal shows; the rest is counted."""


@dataclass(frozen=True)
class Descendants:
    """Everything made from a reference: `order` has the records nearest first, its own before all."""

    reference: str
    roots: list[str]
    children: dict[str, list[str]]
    order: list[str]
    versions: dict[str, list[str]]
    """By record id the model versions that hold what it made."""
    store: ArtifactStore

    def records(self, identities: Iterable[str]) -> dict[str, Record]:
        """The records with these ids, read now."""
        wanted = list(identities)
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(wanted, pool.map(self.store.get_record, wanted), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Stage, digest and time of every record by its id, which were made from which, and all versions."""
        return {
            "reference": self.reference,
            "roots": self.roots,
            "versions": sorted(name for names in self.versions.values() for name in names),
            "records": {
                identity: {
                    "stage": record.stage,
                    "digest": record.content,
                    "started": record.started,
                    "inputs": {one.role: one.record for one in record.parents},
                    "versions": self.versions.get(identity, []),
                }
                for identity, record in self.records(self.order).items()
            },
        }


def descendants_of(workspace: Workspace, reference: str) -> Descendants:
    """All records that have what the reference names among their ancestors, and the model versions of them.

    A version that was acquired as the source of another run counts as an ancestor of that run.

    The reference is a version, digest, record or stage's run as for `find`, or a source: its address with or
    without the revision it was pinned to, a path, or the SHA-256 of one of its files.

    Raises:
        BadInput: no record was made from such a source.
    """
    held: dict[str, list[str]] = defaultdict(list)
    made: dict[str, str] = {}
    for version in search.versions(workspace.tracker):
        if record := version.tags.get(RECORD):
            held[record].append(f"{version.name} version {version.version}")
            made[f"models:/{version.name}/{version.version}"] = record
    index = _Children(workspace.store, made)
    roots = _roots(workspace, reference, index)
    order, seen = list(roots), set(roots)
    children: dict[str, list[str]] = {}
    level = list(roots)
    while level:
        below = index.of(level)
        children |= below
        found = dict.fromkeys(child for ones in below.values() for child in ones)
        level = [one for one in found if one not in seen]
        seen.update(level)
        order += level
    return Descendants(
        reference, roots, children, order, {one: held[one] for one in order if one in held}, workspace.store
    )


def draw(found: Descendants) -> Tree:
    """The versions, then a tree of the nearest records."""
    from rich.tree import Tree

    shown = found.order[:MOST_SHOWN]
    records = found.records(shown)
    made = len(found.order) - len(found.roots)
    root = Tree(printable(f"made from {found.reference}: {made} artifact{'' if made == 1 else 's'}"))
    names = sorted(name for names in found.versions.values() for name in names)
    for name in names:
        root.add(printable(name))
    if not names:
        root.add("no registered version")
    drawn: set[str] = set()

    def add(branch: Tree, identity: str) -> None:
        drawn.add(identity)
        record = records[identity]
        held = found.versions.get(identity)
        text = f"{record.stage} {record.content[:SHORT]}  at {record.started}"
        under = branch.add(printable(text + (f"  = {', '.join(held)}" if held else "")))
        for child in found.children.get(identity, ()):
            if child in records and child not in drawn:
                add(under, child)

    for identity in found.roots:
        if identity in records and identity not in drawn:
            add(root, identity)
    if len(found.order) > len(shown):
        root.add(f"and {len(found.order) - len(shown)} more; --json has them all")
    return root


class _Children:
    """Which records have a record as an input, by the store's index, or acquired it as a source.

    The index is listed once as a whole, since only so those without inputs are known, which are the sources.
    `made` has the records of the registered versions by their addresses.
    """

    def __init__(self, store: ArtifactStore, made: dict[str, str]) -> None:
        self.store = store
        self.made = made

    def of(self, wanted: list[str]) -> dict[str, list[str]]:
        """The children of each of these records."""
        copies = dict(self._copies(wanted)) if self._unknown else {}
        return {
            one: list(
                dict.fromkeys([*self._inputs.get(one, ()), *self._again.get(one, ()), *copies.get(one, ())])
            )
            for one in wanted
        }

    @cached_property
    def acquired(self) -> list[tuple[str, Record]]:
        """The records without inputs, which are those of sources; others are not read."""
        made = {child for found in self._inputs.values() for child in found}
        keys = self.store.driver.list("records/")
        names = (key.removeprefix("records/").removesuffix(".json") for key in keys)
        roots = [name for name in names if DIGEST.match(name) and name not in made]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(zip(roots, pool.map(self.store.get_record, roots), strict=True))

    @cached_property
    def _again(self) -> dict[str, list[str]]:
        """By the record of an export those that acquired a version of it."""
        found: dict[str, list[str]] = defaultdict(list)
        for identity, record in self.acquired:
            if (origin := origin_record(self.store, record, self.made.get)) is not None:
                found[origin].append(identity)
        return found

    @cached_property
    def _unknown(self) -> dict[str, frozenset[str]]:
        """Hashes of all files of the other acquired models, where their origin names these."""
        known = {identity for ones in self._again.values() for identity in ones}
        return {
            identity: frozenset(source.sha256.values())
            for identity, record in self.acquired
            if identity not in known and record.kind == "model"
            for source in sources(record)
            if source.sha256
        }

    def _copies(self, wanted: list[str]) -> Iterator[tuple[str, list[str]]]:
        """Exports among these records, and what was acquired from files that are all in them."""
        with ThreadPoolExecutor(THREADS) as pool:
            for one, files in zip(wanted, pool.map(self._files, wanted), strict=True):
                yield one, [identity for identity, given in self._unknown.items() if given <= files]

    def _files(self, identity: str) -> frozenset[str]:
        """Return the hashes of an export's files; none of another artifact, or of one that was removed."""
        record = self.store.get_record(identity)
        if record.stage != "export":
            return frozenset()
        try:
            return frozenset(entry.sha256 for entry in self.store.manifest(record.content).files)
        except (BadInput, VerificationFailed):
            return frozenset()

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """The children of all records that have some, by the index."""
        found: dict[str, list[str]] = defaultdict(list)
        # What is none of its keys is reported by `audit`.
        for parent, child in keys.own(self.store.driver, "used"):
            found[parent].append(child)
        return found


def _roots(workspace: Workspace, reference: str, index: _Children) -> list[str]:
    """The records that the reference itself names."""
    store = workspace.store
    if DIGEST.match(reference):
        known = [reference] if store.has_record(reference) else store.records_of(reference)
        if known:
            return known
    elif RUN_ID.match(reference):
        return [find(workspace, reference).record]
    elif reference.startswith("models:/"):
        version = workspace.tracker.version(reference)
        if record := version.tags.get(RECORD):
            return [record]
        reference = f"models:/{version.name}/{version.version}"
    wanted = {reference}
    if "://" not in reference and Path(reference).exists():
        wanted.add(Path(reference).resolve().as_uri())
    found = [identity for identity, record in index.acquired if _is_of(record, wanted)]
    if not found:
        raise BadInput(
            f"nothing here was made from '{reference}'; give a source as a config or `lineage` names it, "
            "the SHA-256 of one of its files, models:/name@alias, or a digest"
        )
    return found


def _is_of(record: Record, wanted: set[str]) -> bool:
    for source in sources(record):
        names = {source.uri, source.given, source.uri.partition("#")[0], *source.sha256.values()}
        for one in (source.uri, source.given):
            head, at, _ = one.rpartition("@")
            names |= {head} if at else set()
        if names & wanted:
            return True
    return False
