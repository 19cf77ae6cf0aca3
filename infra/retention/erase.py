"""Erasure on request: bytes are deleted from the store, this machine and MLflow, and a tombstone says so."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra import identity
from resprout.infra.lineage import trees
from resprout.infra.mlflow import search
from resprout.infra.mlflow.errors import mlflow_errors
from resprout.infra.mlflow.tracking import HOLD, Tracker, whole_run
from resprout.infra.provenance.mlflow_state import file_paths
from resprout.infra.provenance.seal import COPY
from resprout.infra.retention.gc_roots import IN_SOURCE, RootFinder
from resprout.infra.retention.mlflow_data import delete_file
from resprout.infra.retention.row_search import ROWS, Fingerprints, fingerprints, is_text, split_lines
from resprout.infra.store import keys, tombstones
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.manifest import FileEntry, hash_file
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.tombstones import Tombstone

THREADS = 8


@dataclass
class Erasure:
    """The files to erase: of artifacts, of MLflow runs, and below <home>/reports."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """By digest the paths with their SHA-256."""
    tracked: dict[str, dict[str, str]] = field(default_factory=dict)
    """By digest "<run id>/<path>" with its SHA-256."""
    local: list[Path] = field(default_factory=list)
    not_searched: list[str] = field(default_factory=list)
    """Files of the same artifacts that are no text, so that no one can say what is in them."""
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


def plan_erasure(store: ArtifactStore, tracker: Tracker, home: Path, digest: str, row: str | None) -> Erasure:
    """Find what an erasure of an artifact, or of one row of it, has to remove.

    Of a whole data set that is all text files, of what came from it, in which one of its rows stands.

    Raises:
        BadInput: no such artifact, no file of it has the row, or too little is given to know a row by.
    """
    manifest = store.manifest(digest)
    wanted = _fingerprints(store, digest, row)
    if row is None:
        first = {entry.path: entry.sha256 for entry in manifest.files}
        spread = {sha256 for path, sha256 in first.items() if path.endswith(ROWS)}
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
        family |= dict.fromkeys(one for root in list(family) for one in _descendants(store, root))
    for one in family:
        if not _is_there(store, one):
            continue
        paths = {**twins.get(one, {}), **dict(_hits(store, one, wanted))} if one != digest else first
        if paths or store.tombstone(one) is not None:
            found.files[one] = paths
        if row is not None or (wanted and one != digest):
            others = [entry.path for entry in store.manifest(one).files if not is_text(entry.path)]
            found.not_searched += [f"{one}/{path}" for path in others]
    leaving_paths = {f"{one}/{path}" for one, paths in found.files.items() for path in paths}
    found.left_behind = [path for path in found.left_behind if path not in leaving_paths]
    _add_copies(found, store, tracker, home, wanted)
    return found


def _fingerprints(store: ArtifactStore, digest: str, row: str | None) -> Fingerprints:
    try:
        return fingerprints(lambda: _text_files(store, digest), row)
    except BadInput:
        # An erasure that was started goes on without the rows: the tombstones name all files.
        if store.tombstone(digest) is None:
            raise
        return Fingerprints()


def _add_copies(
    found: Erasure, store: ArtifactStore, tracker: Tracker, home: Path, wanted: Fingerprints
) -> None:
    """Add the copies in MLflow and on this machine, and the versions that lose files."""
    hashes = {sha256 for paths in found.files.values() for sha256 in paths.values()}
    for one in found.files:
        stone = store.tombstone(one)
        hashes |= set(stone.files.values()) if stone is not None else set()
    copies = CopySearch(tracker, hashes, wanted)
    found.tracked = {one: copies.in_runs(one) for one in found.files}
    reports = (path for path in sorted((home / "reports").rglob("*")) if path.is_file())
    found.local = [path for path in reports if copies.match(path, path.name) is not None]
    leaving_paths = {path for paths in found.tracked.values() for path in paths}
    for version in tracker.versions():
        named = {version.tags.get("resprout.digest", ""), *IN_SOURCE.findall(version.source or "")}
        paths = {path for one in named for path in found.files.get(one, ())}
        own = f"{version.run_id}/{COPY}/"
        paths |= {path.removeprefix(own) for path in leaving_paths if path.startswith(own)}
        if paths:
            found.breaks[f"models:/{version.name}/{version.version}"] = sorted(paths)


def execute_erasure(
    store: ArtifactStore, tracker: Tracker, locks: LeaseLockManager, found: Erasure, reason: str
) -> None:
    """Erase what was found; the tombstones come first, so that an interrupted call is seen and can go on.

    Raises:
        BadInput: something of it is under a legal hold.
    """
    held = {node.record.content for node in trees(store, RootFinder(store, tracker, locks, 0.0).held())}
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
            whole = reason if before is None or before.reason == reason else f"{before.reason}; {reason}"
            stone = Tombstone(
                digest=digest, files=files, tracked=tracked, reason=whole, who=identity.who(), when=when
            )
            tombstones.put(store.driver, store.signer, stone)
        going[digest] = files
        leaving.update(tracked)
    # What the rows are known by goes last, so that a call that was cut off finds the same again.
    for digest, files in reversed(going.items()):
        store.driver.delete_all(f"content/{digest}/{path}" for path in files)
        store.forget(digest)
    for path in leaving:
        _delete_from_run(tracker, path)
    for local in found.local:
        local.unlink(missing_ok=True)


def _descendants(store: ArtifactStore, digest: str) -> list[str]:
    """Return the digests of all artifacts that were made from this one."""
    seen: set[str] = set()
    todo = store.records_of(digest)
    while todo:
        record = todo.pop()
        if record not in seen:
            seen.add(record)
            todo += store.children(record)
    return sorted({store.get_record(record).content for record in seen} - {digest})


def _text_files(store: ArtifactStore, digest: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the text files of an artifact that are there, with their lines."""
    for entry in store.manifest(digest).files:
        key = f"content/{digest}/{entry.path}"
        if is_text(entry.path) and store.driver.head(key) is not None:
            yield entry.path, split_lines(store.driver.read(key))


def _hits(store: ArtifactStore, digest: str, wanted: Fingerprints) -> Iterator[tuple[str, str]]:
    """Yield the text files that match, with their SHA-256."""
    hashes = {entry.path: entry.sha256 for entry in store.manifest(digest).files}
    for path, lines in _text_files(store, digest) if wanted else ():
        if wanted.match(path, lines):
            yield path, hashes[path]


def _is_there(store: ArtifactStore, digest: str) -> bool:
    """Whether there are bytes of it, or a tombstone; gc may have left no more than its records."""
    content = next(iter(store.driver.list(f"content/{digest}/")), None)
    return content is not None or store.tombstone(digest) is not None


def _same(store: ArtifactStore, hashes: set[str], digest: str) -> Iterator[tuple[str, list[FileEntry]]]:
    """Yield other artifacts that have files of these hashes, wherever they came from."""
    others = [one for (one,) in keys.own(store.driver, "manifests") if one != digest]

    def entries(one: str) -> list[FileEntry]:
        with suppress(BadInput, VerificationFailed):
            return [entry for entry in store.manifest(one).files if entry.sha256 in hashes]
        return []

    with ThreadPoolExecutor(THREADS) as pool:
        yield from ((one, same) for one, same in zip(others, pool.map(entries, others), strict=True) if same)


class CopySearch:
    """Finds copies outside the store: files with the bytes of one of `hashes`, or text that matches."""

    def __init__(self, tracker: Tracker, hashes: Set[str], wanted: Fingerprints) -> None:
        self.tracker = tracker
        self.hashes = hashes
        self.wanted = wanted
        self._of_run: dict[str, dict[str, str]] = {}

    def in_runs(self, digest: str) -> dict[str, str]:
        """Return by "<run id>/<path>" the SHA-256 of copies in an artifact's runs and their parents."""
        runs: set[str] = set()
        for run in search.runs(self.tracker, f"tags.`resprout.digest` = '{digest}'"):
            runs |= {run.info.run_id, whole_run(run.info.run_id, run.data.tags)}
        for run_id in runs - self._of_run.keys():
            self._of_run[run_id] = copies_in_run(self.tracker, run_id, self.match)
        return {path: sha256 for run_id in sorted(runs) for path, sha256 in self._of_run[run_id].items()}

    def match(self, file: Path, path: str) -> str | None:
        """Return the SHA-256 of a file that is a copy, None of another; no more than a line is in memory."""
        sha256 = hash_file(file, path).sha256
        if sha256 in self.hashes:
            return sha256
        if is_text(path):
            with file.open("rb") as lines:
                return sha256 if self.wanted.match(path, lines) else None
        return None


@mlflow_errors
def _delete_from_run(tracker: Tracker, tracked: str) -> None:
    """Delete a file of a run, if it is still there."""
    run_id, _, path = tracked.partition("/")
    if path in set(file_paths(tracker, run_id)):
        delete_file(tracker, tracker.run(run_id).info.artifact_uri, path)


@mlflow_errors
def copies_in_run(tracker: Tracker, run_id: str, match: Callable[[Path, str], str | None]) -> dict[str, str]:
    """Return the copies among a run's files; one at a time is brought here, and none is kept."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for path in file_paths(tracker, run_id):
            folder = tempfile.mkdtemp(dir=scratch)
            sha256 = match(Path(tracker.client.download_artifacts(run_id, path, folder)), path)
            shutil.rmtree(folder)
            if sha256 is not None:
                found[f"{run_id}/{path}"] = sha256
    return found
