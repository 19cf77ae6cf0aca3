"""Copies store and MLflow to another place; what is there already and unchanged is not copied again."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra import identity
from resprout.infra.retention import bundle, run_files
from resprout.infra.retention.bundle import LIST, STATEMENT, STORE, TABLES
from resprout.infra.retention.collect import ONE
from resprout.infra.retention.database import Database
from resprout.infra.retention.run_files import lines
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.download import download
from resprout.infra.store.driver import Driver
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.manifest import FileEntry, Manifest, scan
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker

PASSING = {"locks", "pins", "gc", "tmp"}
"""Rooms of a store that say who is at work now."""
APART = {"content", "quarantine", "mlflow"}
"""Rooms that are not copied object by object: files of artifacts and runs, and what was set aside."""
THREADS = 8


@dataclass
class Counted:
    """Objects of the backup, and how many of them and of their bytes were copied this time."""

    objects: int = 0
    bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0


class Backup:
    """One backup of `store`, and of the MLflow behind `tracker`, whose tables are in `database`."""

    def __init__(
        self,
        store: ArtifactStore,
        tracker: Tracker,
        database: Database,
        target: Driver,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.store = store
        self.tracker = tracker
        self.database = database
        self.target = target
        self.progress = progress
        self.counted = Counted()
        self._known: dict[str, FileEntry] = {}
        self._entries: dict[str, FileEntry] = {}

    def run(self, locks: LeaseLockManager) -> Counted:
        """Bring the backup up to date; no gc deletes meanwhile.

        Raises:
            BadInput: a gc or another backup is at work.
            VerificationFailed: an artifact is damaged, so that a copy of it would be worth nothing.
        """
        me = f"backup of {self.store.root_uri}"
        if not locks.acquire_lock(ONE, me, acquire_timeout=0):
            raise BadInput(f"a gc or a backup is at work on {self.store.root_uri}; wait for it, or end it")
        try:
            self._known = self._before()
            self.target.delete(STATEMENT)
            with self.store.workdir() as scratch:
                # The database first: every record that it names is in the store by now.
                self._tables(scratch / "tables")
                places = self._places(scratch / "tables")
                self._files(scratch)
                self._objects()
                self._artifacts(scratch)
                self._finish(scratch, places)
        finally:
            locks.retire(ONE, me)
        return self.counted

    def _before(self) -> dict[str, FileEntry]:
        """What an earlier backup left there."""
        try:
            return {entry.path: entry for entry in bundle.read_list(self.target)}
        except VerificationFailed:
            return {}

    def _tables(self, folder: Path) -> None:
        folder.mkdir()
        self.revision = self.database.revision()
        self.rows = self.database.dump(folder)
        self._put_folder(TABLES.rstrip("/"), folder, scan(folder))

    def _places(self, tables: Path) -> dict[str, object]:
        locations = {row["experiment_id"]: row["artifact_location"] for row in lines(tables, "experiments")}
        return {"store": self.store.root_uri, "experiments": {str(k): v for k, v in locations.items()}}

    def _files(self, scratch: Path) -> None:
        """What MLflow keeps beside its tables."""
        for one in run_files.kept(scratch / "tables"):
            folder = scratch / "files"
            if run_files.bring(self.tracker, one.uri, folder):
                self._put_folder(one.key, folder, scan(folder))
                shutil.rmtree(folder)

    def _objects(self) -> None:
        """All small objects of the store."""
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(self._object, list(self._keys())):
                pass

    def _keys(self) -> Iterator[str]:
        for entry in self.store.driver.entries(""):
            if entry.key.partition("/")[0] not in PASSING | APART:
                yield entry.key

    def _object(self, key: str) -> None:
        data = self.store.driver.get_bytes(key)
        if data is None:
            return
        entry = bundle.entry_of(f"{STORE}{key}", data)
        if not self._is_there(entry):
            self.target.put_bytes(entry.path, data)
            self._copied([entry])
        self._entries[entry.path] = entry

    def _artifacts(self, scratch: Path) -> None:
        """The files of every artifact that has a manifest; those that were erased are missing there too."""
        manifests = [key for key in self._entries if key.startswith(f"{STORE}manifests/")]
        for done, key in enumerate(sorted(manifests), 1):
            digest = key.rpartition("/")[2].removesuffix(".json")
            if not DIGEST.fullmatch(digest):
                continue
            manifest = left_of(self.store, digest)
            if manifest is not None and not all(
                self.store.driver.matches(f"content/{digest}/{entry.path}", entry) for entry in manifest.files
            ):
                raise VerificationFailed(
                    f"artifact {digest} is not complete, so a copy would be worth nothing; `resprout verify "
                    f"{digest}` says what is missing"
                )
            if manifest is not None:
                prefix = f"content/{digest}"
                wanted = bundle.below(f"{STORE}{prefix}/", manifest)
                if all(self._is_there(entry) for entry in wanted):
                    self._entries.update({entry.path: entry for entry in wanted})
                else:
                    with self._here(prefix, manifest, scratch / "content") as folder:
                        self._put_folder(f"{STORE}{prefix}", folder, manifest)
            self.progress(done, len(manifests))

    @contextmanager
    def _here(self, prefix: str, manifest: Manifest, scratch: Path) -> Iterator[Path]:
        folder = self.store.driver.folder(prefix)
        if folder is not None:
            yield folder
            return
        scratch.mkdir()
        download(self.store.driver, prefix, manifest, scratch)
        yield scratch
        shutil.rmtree(scratch)

    def _put_folder(self, prefix: str, folder: Path, manifest: Manifest) -> None:
        entries = bundle.below(f"{prefix}/", manifest)
        if not all(self._is_there(entry) for entry in entries):
            with self.target.staged(folder, move=False) as staged:
                if scan(staged).files != manifest.files:
                    raise VerificationFailed(
                        f"{prefix} is not as its manifest says; `resprout verify` says which file was changed"
                    )
                self.target.put_folder(prefix, staged, manifest, force=False)
            self._copied(entries)
        self._entries.update({entry.path: entry for entry in entries})

    def _is_there(self, entry: FileEntry) -> bool:
        return self._known.get(entry.path) == entry and self.target.matches(entry.path, entry)

    def _copied(self, entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            self.counted.copied += 1
            self.counted.copied_bytes += entry.size

    def _finish(self, scratch: Path, places: dict[str, object]) -> None:
        """List and statement, then what the backup no longer holds goes."""
        listed = scratch / "list"
        listed.mkdir()
        sha256 = bundle.write_list(listed / LIST, self._entries.values())
        self.target.put_bytes(LIST, (listed / LIST).read_bytes())
        said = {
            "list": sha256,
            "objects": len(self._entries),
            "rows": self.rows,
            "revision": self.revision,
            "mlflow": importlib.metadata.version("mlflow"),
            "resprout": identity.code_identity()["resprout"],
            "places": places,
            "who": identity.who(),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        bundle.describe(self.target, self.store.signer, said)
        stale = [
            key for top in (STORE, "mlflow/") for key in self.target.list(top) if key not in self._entries
        ]
        self.target.delete_all(stale)
        self.counted.objects = len(self._entries)
        self.counted.bytes = sum(entry.size for entry in self._entries.values())


def left_of(store: ArtifactStore, digest: str) -> Manifest | None:
    """The manifest of what an artifact still has after erasures; None where that is nothing."""
    manifest, stone = store.manifest(digest), store.tombstone(digest)
    if stone is None:
        return manifest
    left = [entry for entry in manifest.files if entry.path not in stone.files]
    return bundle.inside("", left) if left else None
