"""Erasure on request: bytes go from the store, this machine and MLflow; what they were stays known."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra import identity
from resprout.infra.lineage import trees
from resprout.infra.proof.seal import COPY
from resprout.infra.retention import rows
from resprout.infra.retention.copies import Copies, untrack
from resprout.infra.retention.needs import Look
from resprout.infra.retention.versions import IN_SOURCE
from resprout.infra.store import keys, tombstones
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.manifest import FileEntry
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.tombstones import Tombstone
from resprout.infra.tracking import HOLD, Tracker

THREADS = 8


@dataclass
class Erasure:
    """What would go: files of artifacts, files of MLflow runs, files below <home>/reports."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """By digest the paths with their SHA-256."""
    tracked: dict[str, dict[str, str]] = field(default_factory=dict)
    """By digest "<run id>/<path>" with its SHA-256."""
    local: list[Path] = field(default_factory=list)
    not_searched: list[str] = field(default_factory=list)
    """Files of the same artifacts that are no text, so that nobody can say what is in them."""
    left_behind: list[str] = field(default_factory=list)
    """Files of other artifacts with the same bytes, which go with those artifacts only."""
    breaks: dict[str, list[str]] = field(default_factory=dict)
    """By registered version the files of its export that go: it may not load without them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "artifacts": {
                digest: dict(sorted(paths.items())) for digest, paths in sorted(self.files.items())
            },
            "mlflow": sorted({path for paths in self.tracked.values() for path in paths}),
            "local": sorted(map(str, self.local)),
            "not_searched": sorted(self.not_searched),
            "left_behind": sorted(self.left_behind),
            "breaks": {version: sorted(paths) for version, paths in sorted(self.breaks.items())},
        }


def find(store: ArtifactStore, tracker: Tracker, home: Path, digest: str, row: str | None) -> Erasure:
    """What an erasure of an artifact, or of one row of it, has to remove.

    Of a whole data set that is all text files, of what came from it, in which one of its rows stands.

    Raises:
        BadInput: no such artifact, no file of it has the row, or too little is given to know a row by.
    """
    manifest = store.manifest(digest)
    wanted = _signs(store, digest, row)
    if row is None:
        first = {entry.path: entry.sha256 for entry in manifest.files}
        spread = {sha256 for path, sha256 in first.items() if path.endswith(rows.ROWS)}
    else:
        first = dict(_hits(store, digest, wanted))
        spread = set(first.values())
        if not first and store.tombstone(digest) is None:
            raise BadInput(
                f"no text file of artifact {digest} has the row '{row[:80]}'; give a row's id, or a text "
                "that stands in it"
            )
    found = Erasure(files={digest: first})
    twins: dict[str, dict[str, str]] = {}
    for one, entries in _same(store, set(first.values()), digest):
        for entry in entries:
            if entry.sha256 in spread:
                twins.setdefault(one, {})[entry.path] = entry.sha256
            else:
                found.left_behind.append(f"{one}/{entry.path}")
    family = dict.fromkeys([digest, *twins])
    if wanted:
        family |= dict.fromkeys(one for root in list(family) for one in descendants(store, root))
    for one in family:
        if not _is_there(store, one):
            continue
        paths = {**twins.get(one, {}), **dict(_hits(store, one, wanted))} if one != digest else first
        if paths or store.tombstone(one) is not None:
            found.files[one] = paths
        if row is not None or (wanted and one != digest):
            others = [entry.path for entry in store.manifest(one).files if not rows.is_text(entry.path)]
            found.not_searched += [f"{one}/{path}" for path in others]
    gone = {f"{one}/{path}" for one, paths in found.files.items() for path in paths}
    found.left_behind = [path for path in found.left_behind if path not in gone]
    _copied(found, store, tracker, home, wanted)
    return found


def _signs(store: ArtifactStore, digest: str, row: str | None) -> rows.Signs:
    try:
        return rows.signs(lambda: _text_files(store, digest), row)
    except BadInput:
        # An erasure that was begun goes on without the rows: the tombstones name all files.
        if store.tombstone(digest) is None:
            raise
        return rows.Signs()


def _copied(found: Erasure, store: ArtifactStore, tracker: Tracker, home: Path, wanted: rows.Signs) -> None:
    """Add the copies in MLflow and on this machine, and the versions that lose files."""
    hashes = {sha256 for paths in found.files.values() for sha256 in paths.values()}
    for one in found.files:
        stone = store.tombstone(one)
        hashes |= set(stone.files.values()) if stone is not None else set()
    copies = Copies(tracker, hashes, wanted)
    found.tracked = {one: copies.tracked(one) for one in found.files}
    found.local = copies.reports(home)
    gone = {path for paths in found.tracked.values() for path in paths}
    for version in tracker.versions():
        told = {version.tags.get("resprout.digest", ""), *IN_SOURCE.findall(version.source or "")}
        paths = {path for one in told for path in found.files.get(one, ())}
        own = f"{version.run_id}/{COPY}/"
        paths |= {path.removeprefix(own) for path in gone if path.startswith(own)}
        if paths:
            found.breaks[f"models:/{version.name}/{version.version}"] = sorted(paths)


def carry_out(
    store: ArtifactStore, tracker: Tracker, locks: LeaseLockManager, found: Erasure, reason: str
) -> None:
    """Erase what was found; first the tombstones, so that a call that was cut off is seen and can go on.

    Raises:
        BadInput: something of it is under a legal hold.
    """
    held = {node.record.content for node in trees(store, Look(store, tracker, locks, 0.0).held())}
    if kept := sorted(held & found.files.keys()):
        raise BadInput(
            f"artifact {kept[0]} is under a legal hold; lift the tag {HOLD} that holds it (`resprout hold "
            "REF --release`), or leave it"
        )
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    going: dict[str, dict[str, str]] = {}
    leaving: dict[str, str] = {}
    for digest, paths in found.files.items():
        before = store.tombstone(digest)
        files = {**(before.files if before else {}), **paths}
        tracked = {**(before.tracked if before else {}), **found.tracked[digest]}
        if before is None or (dict(before.files), dict(before.tracked)) != (files, tracked):
            said = reason if before is None or before.reason == reason else f"{before.reason}; {reason}"
            stone = Tombstone(digest, files, tracked, said, identity.who(), when)
            tombstones.put(store.driver, store.signer, stone)
        going[digest] = files
        leaving.update(tracked)
    # What the rows are known by goes last, so that a call that was cut off finds the same again.
    for digest, files in reversed(going.items()):
        store.driver.delete_all(f"content/{digest}/{path}" for path in files)
        store.forget(digest)
    for path in leaving:
        untrack(tracker, path)
    for local in found.local:
        local.unlink(missing_ok=True)


def descendants(store: ArtifactStore, digest: str) -> list[str]:
    """Digests of all artifacts that came from this one, in no order."""
    seen: set[str] = set()
    todo = store.records_of(digest)
    while todo:
        record = todo.pop()
        if record not in seen:
            seen.add(record)
            todo += store.children(record)
    return sorted({store.get_record(record).content for record in seen} - {digest})


def _text_files(store: ArtifactStore, digest: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The text files of an artifact that are there, with their lines."""
    for entry in store.manifest(digest).files:
        key = f"content/{digest}/{entry.path}"
        if rows.is_text(entry.path) and store.driver.head(key) is not None:
            yield entry.path, rows.split(store.driver.read(key))


def _hits(store: ArtifactStore, digest: str, wanted: rows.Signs) -> Iterator[tuple[str, str]]:
    """The text files in which a sign stands, with their SHA-256."""
    hashes = {entry.path: entry.sha256 for entry in store.manifest(digest).files}
    for path, lines in _text_files(store, digest) if wanted else ():
        if wanted.stand_in(path, lines):
            yield path, hashes[path]


def _is_there(store: ArtifactStore, digest: str) -> bool:
    """Whether there are bytes of it, or word of an erasure; gc may have left no more than its records."""
    content = next(iter(store.driver.list(f"content/{digest}/")), None)
    return content is not None or store.tombstone(digest) is not None


def _same(store: ArtifactStore, hashes: set[str], digest: str) -> Iterator[tuple[str, list[FileEntry]]]:
    """Other artifacts that have files of these hashes, wherever they came from."""
    others = [one for (one,) in keys.own(store.driver, "manifests") if one != digest]

    def entries(one: str) -> list[FileEntry]:
        with suppress(BadInput, VerificationFailed):
            return [entry for entry in store.manifest(one).files if entry.sha256 in hashes]
        return []

    with ThreadPoolExecutor(THREADS) as pool:
        yield from ((one, same) for one, same in zip(others, pool.map(entries, others), strict=True) if same)
