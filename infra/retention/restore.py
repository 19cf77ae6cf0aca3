"""Brings a backup back into an empty store and an empty MLflow, elsewhere too, and hashes all of it again."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.environment import ARTIFACTS
from resprout.infra.retention import bundle, run_files
from resprout.infra.retention.backup import PASSING
from resprout.infra.retention.bundle import FILES, STORE, TABLES, Described
from resprout.infra.retention.database import Database
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.download import download
from resprout.infra.store.driver import Driver
from resprout.infra.store.manifest import FileEntry, Manifest, scan
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker

THREADS = 8


class Restore:
    """One restore into `store` and the MLflow behind `tracker`, whose tables are in `database`."""

    def __init__(
        self,
        source: Driver,
        store: ArtifactStore,
        tracker: Tracker,
        database: Database,
        home: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.source = source
        self.store = store
        self.tracker = tracker
        self.database = database
        self.home = home
        self.progress = progress

    def run(self) -> Described:
        """Restore and verify everything.

        Raises:
            BadInput: the target is not empty, or its MLflow has another schema.
            VerificationFailed: a byte of the backup, or one that was brought back, is not as the backup says.
        """
        backup = bundle.described(self.source, self.store.signer)
        self._require_empty(backup)
        entries = sorted(bundle.read_list(self.source, backup.said["list"]), key=lambda one: one.path)
        if len(entries) != backup.said["objects"]:
            raise VerificationFailed("the backup lists another number of objects than its statement says")
        folders, small = self._sorted(entries)
        with self.store.workdir() as scratch:
            self._content(folders[f"{STORE}content/"], scratch)
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(self._object, small):
                    pass
            moved = self._moved(backup)
            self._tables(folders[TABLES][""], scratch, moved)
            self._files(folders[FILES], scratch)
            self._verify(entries, scratch, backup)
        return backup

    def _require_empty(self, backup: Described) -> None:
        held = (key for key in self.store.driver.list("") if key.partition("/")[0] not in PASSING)
        if (first := next(held, None)) is not None:
            raise BadInput(
                f"the store {self.store.root_uri} is not empty ({first}); restore into a new place: another "
                "infra.store.uri or infra.home"
            )
        self.database.require_empty(self.tracker.experiment())
        revision, version = self.database.revision(), backup.said["mlflow"]
        if revision != backup.said["revision"]:
            raise BadInput(
                f"the backup has the schema {backup.said['revision']} of MLflow {version}, and "
                f"{self.database.shown} has {revision}; install mlflow=={version}, restore, then upgrade "
                "with `mlflow db upgrade`"
            )

    def _sorted(
        self, entries: list[FileEntry]
    ) -> tuple[dict[str, dict[str, list[FileEntry]]], list[FileEntry]]:
        """Entries of folders, by room and folder, and those of single objects."""
        folders: dict[str, dict[str, list[FileEntry]]] = {f"{STORE}content/": {}, TABLES: {}, FILES: {}}
        small = []
        for entry in entries:
            room = next((one for one in folders if entry.path.startswith(one)), None)
            if room is not None:
                rest = entry.path.removeprefix(room)
                name = "" if room == TABLES else rest.partition("/")[0]
                folders[room].setdefault(name, []).append(entry)
            elif entry.path.startswith(STORE) and entry.path.split("/")[1] not in PASSING:
                small.append(entry)
            else:
                raise VerificationFailed(f"the backup lists {entry.path}, which no backup has")
        return folders, small

    def _content(self, artifacts: dict[str, list[FileEntry]], scratch: Path) -> None:
        for done, (digest, entries) in enumerate(artifacts.items(), 1):
            manifest = bundle.inside(f"{STORE}content/{digest}/", entries)
            with (
                self._here(f"{STORE}content/{digest}", manifest, scratch / "content") as folder,
                self.store.driver.staged(folder, move=False) as staged,
            ):
                self._require_same(scan(staged), manifest, f"content/{digest}")
                self.store.driver.put_folder(f"content/{digest}", staged, manifest, force=False)
            self.progress(done, len(artifacts))

    def _object(self, entry: FileEntry) -> None:
        data = self.source.get_bytes(entry.path)
        if data is None or sha256_hex(data) != entry.sha256:
            what = "is missing" if data is None else "was changed"
            raise VerificationFailed(f"{self.source.uri(entry.path)} {what}; use another backup")
        self.store.driver.put_bytes(entry.path.removeprefix(STORE), data)

    def _tables(self, entries: list[FileEntry], scratch: Path, moved: Callable[[str], str]) -> None:
        manifest = bundle.inside(TABLES, entries)
        with self._here(TABLES.rstrip("/"), manifest, scratch / "tables") as folder:
            self._require_same(scan(folder), manifest, TABLES)
            self.database.load(folder, moved)

    def _files(self, runs: dict[str, list[FileEntry]], scratch: Path) -> None:
        for run_id, entries in runs.items():
            manifest = bundle.inside(f"{FILES}{run_id}/", entries)
            with self._here(f"{FILES}{run_id}", manifest, scratch / "files") as folder:
                self._require_same(scan(folder), manifest, f"{FILES}{run_id}")
                run_files.put(self.tracker, self.tracker.run(run_id).info.artifact_uri, folder)

    @contextmanager
    def _here(self, prefix: str, manifest: Manifest, scratch: Path) -> Iterator[Path]:
        """A folder of the backup on this machine."""
        folder = self.source.folder(prefix)
        if folder is None:
            scratch.mkdir()
            download(self.source, prefix, manifest, scratch)
        yield scratch if folder is None else folder
        shutil.rmtree(scratch, ignore_errors=True)

    def _require_same(self, found: Manifest, wanted: Manifest, where: str) -> None:
        if found.files != wanted.files:
            differ = {*found.files} ^ {*wanted.files}
            path = min(entry.path for entry in differ)
            raise VerificationFailed(f"{where} of the backup was changed ({path}); use another backup")

    def _moved(self, backup: Described) -> Callable[[str], str]:
        """Puts the places of now for those of then, in texts that begin with one."""
        places = backup.said["places"]
        roots = {places["store"]: self.store.root_uri}
        for identity, location in places["experiments"].items():
            if urlsplit(location).scheme in ("", "file") and not location.startswith(f"{places['store']}/"):
                kept = self.home / ARTIFACTS
                own = location.rstrip("/").endswith(f"/{ARTIFACTS}")
                roots[location] = (kept if own else kept / f"experiment-{identity}").resolve().as_uri()

        def moved(text: str) -> str:
            for old, new in roots.items():
                if text == old or text.startswith(f"{old}/"):
                    return new + text.removeprefix(old)
            return text

        return moved

    def _verify(self, entries: list[FileEntry], scratch: Path, backup: Described) -> None:
        """Hash what is in the target now, and count its rows."""
        held = [entry for entry in entries if entry.path.startswith(STORE)]
        with ThreadPoolExecutor(THREADS) as pool:
            for entry, sha256 in zip(held, pool.map(self._hashed, held), strict=True):
                if sha256 != entry.sha256:
                    where = self.store.driver.uri(entry.path.removeprefix(STORE))
                    raise VerificationFailed(f"{where} did not arrive as the backup has it; restore again")
        files = [entry for entry in entries if entry.path.startswith(FILES)]
        for run_id, group in itertools.groupby(files, lambda one: one.path.split("/")[2]):
            folder = scratch / "arrived"
            run_files.bring(self.tracker, self.tracker.run(run_id).info.artifact_uri, folder)
            wanted = bundle.inside(f"{FILES}{run_id}/", group)
            self._require_same(scan(folder), wanted, f"{FILES}{run_id}")
            shutil.rmtree(folder)
        (scratch / "again").mkdir()
        rows = self.database.dump(scratch / "again")
        if rows != backup.said["rows"]:
            raise VerificationFailed(
                f"{self.database.shown} has other rows than the backup; restore again into a new database"
            )

    def _hashed(self, entry: FileEntry) -> str:
        found = hashlib.sha256()
        try:
            for piece in self.store.driver.read(entry.path.removeprefix(STORE)):
                found.update(piece)
        except FileNotFoundError:
            return ""
        return found.hexdigest()
