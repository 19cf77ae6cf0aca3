"""Erasure on request: bytes go from the store, this machine and MLflow; what they were stays known."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra import identity
from resprout.infra.answers import answers
from resprout.infra.lineage import trees
from resprout.infra.retention import rows, run_files
from resprout.infra.retention.needs import Look, searched
from resprout.infra.store import tombstones
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.tombstones import Tombstone
from resprout.infra.tracking import HOLD, Tracker


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

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "artifacts": {
                digest: dict(sorted(paths.items())) for digest, paths in sorted(self.files.items())
            },
            "mlflow": sorted({path for paths in self.tracked.values() for path in paths}),
            "local": sorted(map(str, self.local)),
            "not_searched": sorted(self.not_searched),
        }


def find(store: ArtifactStore, tracker: Tracker, home: Path, digest: str, row: str | None) -> Erasure:
    """What an erasure of an artifact, or of one row of it, has to remove.

    Raises:
        BadInput: no such artifact, or no file of it has the row.
    """
    manifest = store.manifest(digest)
    if row is None:
        found = Erasure(files={digest: {entry.path: entry.sha256 for entry in manifest.files}})
        wanted: set[str] = set()
    else:
        found = Erasure()
        wanted = rows.signs(_text_files(store, digest), row)
        for one in [digest, *descendants(store, digest)]:
            paths = {
                path: sha256_hex(data)
                for path, data in _text_files(store, one)
                if rows.holds(path, data, wanted)
            }
            if paths or store.tombstone(one) is not None:
                found.files[one] = paths
            others = [entry.path for entry in store.manifest(one).files if not rows.is_text(entry.path)]
            found.not_searched += [f"{one}/{path}" for path in others]
        if not found.files.get(digest) and store.tombstone(digest) is None:
            raise BadInput(
                f"no text file of artifact {digest} has the row '{row[:80]}'; give a row's id, or a text "
                "that stands in it"
            )
    for one, paths in found.files.items():
        stone = store.tombstone(one)
        hashes = {*paths.values(), *(stone.files.values() if stone is not None else ())}
        found.tracked[one] = dict(_tracked(tracker, one, hashes, wanted))
        found.local += _reports(home, hashes, wanted)
    found.local = sorted(set(found.local))
    return found


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
    for digest, paths in found.files.items():
        before = store.tombstone(digest)
        files = {**(before.files if before else {}), **paths}
        tracked = {**(before.tracked if before else {}), **found.tracked[digest]}
        if before is None or (dict(before.files), dict(before.tracked)) != (files, tracked):
            said = reason if before is None or before.reason == reason else f"{before.reason}; {reason}"
            stone = Tombstone(digest, files, tracked, said, identity.who(), when)
            tombstones.put(store.driver, store.signer, stone)
        store.driver.delete_all(f"content/{digest}/{path}" for path in files)
        store.forget(digest)
        for path in tracked:
            _untrack(tracker, path)
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


def _text_files(store: ArtifactStore, digest: str) -> Iterator[tuple[str, bytes]]:
    for entry in store.manifest(digest).files:
        if rows.is_text(entry.path):
            data = store.driver.get_bytes(f"content/{digest}/{entry.path}")
            if data is not None:
                yield entry.path, data


def _is_hit(path: str, data: bytes, hashes: set[str], wanted: set[str]) -> bool:
    return sha256_hex(data) in hashes or (rows.is_text(path) and rows.holds(path, data, wanted))


@answers
def _tracked(tracker: Tracker, digest: str, hashes: set[str], wanted: set[str]) -> list[tuple[str, str]]:
    """Files of the runs of an artifact, and of the runs around them, that hold the same."""
    runs = {run.info.run_id: run for run in searched(tracker, f"tags.`resprout.digest` = '{digest}'")}
    for run in list(runs.values()):
        parent = run.data.tags.get("mlflow.parentRunId")
        if parent is not None and parent not in runs:
            runs[parent] = tracker.client.get_run(parent)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for run_id in runs:
            for path in _paths(tracker, run_id):
                file = Path(tracker.client.download_artifacts(run_id, path, tempfile.mkdtemp(dir=scratch)))
                data = file.read_bytes()
                if _is_hit(path, data, hashes, wanted):
                    found.append((f"{run_id}/{path}", sha256_hex(data)))
    return found


def _paths(tracker: Tracker, run_id: str, folder: str | None = None) -> Iterator[str]:
    for found in tracker.client.list_artifacts(run_id, folder):
        if found.is_dir:
            yield from _paths(tracker, run_id, found.path)
        else:
            yield found.path


def _untrack(tracker: Tracker, tracked: str) -> None:
    """Delete a file of a run, if it is still there."""
    run_id, _, path = tracked.partition("/")
    if path in set(_paths(tracker, run_id)):
        run_files.remove(tracker, tracker.run(run_id).info.artifact_uri, path)


def _reports(home: Path, hashes: set[str], wanted: set[str]) -> list[Path]:
    """Copies of a report that lie where a person looks for them."""
    files = [path for path in sorted((home / "reports").rglob("*")) if path.is_file()]
    return [path for path in files if _is_hit(path.name, path.read_bytes(), hashes, wanted)]
