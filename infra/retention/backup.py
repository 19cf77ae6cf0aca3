"""Copies store and MLflow to another place; what is there already and unchanged is not copied again."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra import identity
from resprout.infra.retention import bundle, run_files
from resprout.infra.retention.bundle import LIST, STATEMENT, STORE, TABLES
from resprout.infra.retention.collect import ONE
from resprout.infra.retention.database import Database
from resprout.infra.retention.earlier import Earlier, note, stamp
from resprout.infra.retention.moment import STATEMENTS, Moment, take
from resprout.infra.retention.run_files import Kept, lines
from resprout.infra.store.cache import download
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.driver import Driver, Listed
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


@dataclass(frozen=True)
class Taken:
    """Objects that the backup has now, whether they were copied, and how their source looked."""

    entries: list[FileEntry]
    copied: bool = False
    source: str | None = None


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
        self._entries: dict[str, FileEntry] = {}
        self._sources: dict[str, str] = {}
        self._listed: dict[str, Listed] = {}

    def run(self, locks: LeaseLockManager) -> Counted:
        """Bring the backup up to date; no gc deletes meanwhile, runs may go on.

        Raises:
            BadInput: a gc or another backup is at work.
            Transient: runs register models all the time.
            VerificationFailed: an artifact is damaged, so that a copy of it would be worth nothing.
        """
        me = f"backup of {self.store.root_uri}"
        if not locks.acquire_lock(ONE, me, acquire_timeout=0):
            raise BadInput(f"a gc or a backup is at work on {self.store.root_uri}; wait for it, or end it")
        try:
            with self.store.workdir() as scratch:
                tables = scratch / "tables"
                revision = self.database.revision()
                moment = take(self.database, self.store.driver, locks, tables)
                self._earlier = Earlier(self.target)
                self.target.delete(STATEMENT)
                self._add(self._put_folder(TABLES.rstrip("/"), tables, scan(tables)))
                self._each(partial(self._files, scratch), list(run_files.kept(tables)))
                # After the tables: every record that a row or a statement names is in the store by now.
                self._list()
                self._objects(moment)
                self._artifacts(scratch)
                about = {"rows": moment.rows, "revision": revision, "located": self._places(tables)}
                self._finish(scratch, about)
        finally:
            locks.retire(ONE, me)
        return self.counted

    def _each(self, copy: Callable[[Any], Taken], things: Sequence[Any], shown: bool = False) -> None:
        """Copy several at once; the first error leaves what has not begun."""
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for done, taken in enumerate(pool.map(copy, things), 1):
                    self._add(taken)
                    if shown:
                        self.progress(done, len(things))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _add(self, taken: Taken) -> None:
        self._entries.update({entry.path: entry for entry in taken.entries})
        if taken.copied:
            self.counted.copied += len(taken.entries)
            self.counted.copied_bytes += sum(entry.size for entry in taken.entries)
        if taken.source:
            self._sources.update({entry.path: taken.source for entry in taken.entries})

    def _places(self, tables: Path) -> dict[str, object]:
        locations = {row["experiment_id"]: row["artifact_location"] for row in lines(tables, "experiments")}
        return {"store": self.store.root_uri, "experiments": {str(k): v for k, v in locations.items()}}

    def _files(self, scratch: Path, one: Kept) -> Taken:
        """What MLflow keeps beside its tables, of one run, model or trace."""
        known = [self._earlier.same(entry.path, one.ended) for entry in self._earlier.folder(one.key)]
        held = [entry for entry in known if entry is not None]
        if held and len(held) == len(known):
            there = run_files.sizes(self.tracker, one.uri)
            if there == {entry.path.removeprefix(f"{one.key}/"): entry.size for entry in held}:
                return Taken(held, source=one.ended)
        folder = scratch / one.key
        if not run_files.bring(self.tracker, one.uri, folder):
            return Taken([])
        taken = self._put_folder(one.key, folder, scan(folder))
        shutil.rmtree(folder)
        return replace(taken, source=one.ended)

    def _list(self) -> None:
        """Look at the whole store, and once more at what others point to, so that nothing points nowhere."""
        for room in ("", "records/", "manifests/", "content/"):
            self._listed.update({one.key: one for one in self.store.driver.entries(room)})

    def _objects(self, moment: Moment) -> None:
        """All small objects of the store; of statements about MLflow those that its tables bear out."""
        wanted = [
            one
            for one in self._listed.values()
            if one.key.partition("/")[0] not in PASSING | APART
            and (not one.key.startswith(STATEMENTS) or one.key in moment.statements)
        ]
        self._each(self._object, wanted)

    def _object(self, listed: Listed) -> Taken:
        path, source = f"{STORE}{listed.key}", stamp(listed)
        if (known := self._earlier.same(path, source)) is not None:
            return Taken([known], source=source)
        data = self.store.driver.get_bytes(listed.key)
        if data is None:
            return Taken([])
        entry = bundle.entry_of(path, data)
        there = self._earlier.there(entry)
        if not there:
            self.target.put_bytes(entry.path, data)
        return Taken([entry], copied=not there, source=source)

    def _artifacts(self, scratch: Path) -> None:
        """The files of every artifact that has a manifest; those that were erased are missing there too."""
        names = sorted(key for key in self._entries if key.startswith(f"{STORE}manifests/"))
        digests = [name.rpartition("/")[2].removesuffix(".json") for name in names]
        digests = [digest for digest in digests if DIGEST.fullmatch(digest)]
        self._each(partial(self._artifact, scratch), digests, shown=True)

    def _artifact(self, scratch: Path, digest: str) -> Taken:
        prefix = f"content/{digest}"
        known = self._earlier.folder(f"{STORE}{prefix}")
        if known and bundle.inside(f"{STORE}{prefix}/", known).digest == digest:
            erased = f"{STORE}tombstones/{digest}.json" in self._entries
            if not erased and all(self._earlier.there(one) and self._is_at_source(one) for one in known):
                return Taken(known)
        manifest = left_of(self.store, digest)
        if manifest is None:
            return Taken([])
        wanted = bundle.below(f"{STORE}{prefix}/", manifest)
        # What came after the listing is looked up.
        if not all(self._is_at_source(one) or self._looked_up(one) for one in wanted):
            raise VerificationFailed(
                f"artifact {digest} is not complete, so a copy would be worth nothing; `resprout verify "
                f"{digest}` says what is missing"
            )
        if all(self._earlier.there(entry) for entry in wanted):
            return Taken(wanted)
        with self._here(prefix, manifest, scratch / prefix) as folder:
            return self._put_folder(f"{STORE}{prefix}", folder, manifest)

    def _is_at_source(self, entry: FileEntry) -> bool:
        listed = self._listed.get(entry.path.removeprefix(STORE))
        return listed is not None and listed.size == entry.size

    def _looked_up(self, entry: FileEntry) -> bool:
        return self.store.driver.matches(entry.path.removeprefix(STORE), entry)

    @contextmanager
    def _here(self, prefix: str, manifest: Manifest, scratch: Path) -> Iterator[Path]:
        folder = self.store.driver.folder(prefix)
        if folder is not None:
            yield folder
            return
        scratch.mkdir(parents=True)
        download(self.store.driver, prefix, manifest, scratch)
        yield scratch
        shutil.rmtree(scratch)

    def _put_folder(self, prefix: str, folder: Path, manifest: Manifest) -> Taken:
        entries = bundle.below(f"{prefix}/", manifest)
        if all(self._earlier.there(entry) for entry in entries):
            return Taken(entries)
        with self.target.staged(folder, move=False) as staged:
            if scan(staged).files != manifest.files:
                raise VerificationFailed(
                    f"{prefix} is not as its manifest says; `resprout verify` says which file was changed"
                )
            self.target.put_folder(prefix, staged, manifest, force=False)
        return Taken(entries, copied=True)

    def _finish(self, scratch: Path, about: Mapping[str, object]) -> None:
        """List and statement, then what the backup no longer holds goes."""
        sha256 = bundle.write_list(scratch / LIST, self._entries.values())
        self.target.put_bytes(LIST, (scratch / LIST).read_bytes())
        said = {
            "list": sha256,
            "objects": len(self._entries),
            **about,
            "mlflow": importlib.metadata.version("mlflow"),
            "resprout": identity.code_identity()["resprout"],
            "who": identity.who(),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        bundle.describe(self.target, self.store.signer, said)
        listed = [one for top in (STORE, "mlflow/") for one in self.target.entries(top)]
        self.target.delete_all([one.key for one in listed if one.key not in self._entries])
        note(self.target, self._sources, [one for one in listed if one.key in self._entries])
        self.counted.objects = len(self._entries)
        self.counted.bytes = sum(entry.size for entry in self._entries.values())


def left_of(store: ArtifactStore, digest: str) -> Manifest | None:
    """The manifest of what an artifact still has after erasures; None where that is nothing."""
    manifest, stone = store.manifest(digest), store.tombstone(digest)
    if stone is None:
        return manifest
    left = [entry for entry in manifest.files if entry.path not in stone.files]
    return bundle.inside("", left) if left else None
