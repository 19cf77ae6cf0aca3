"""Brings a backup back into an empty store and an empty MLflow, elsewhere too, and hashes all of it again."""

from __future__ import annotations

import hashlib
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
from resprout.infra.retention.bundle import FILES, MODELS, STORE, TABLES, TRACES, Described
from resprout.infra.retention.database import Database
from resprout.infra.retention.elsewhere import own_experiment
from resprout.infra.store.cache import download
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import Driver
from resprout.infra.store.manifest import FileEntry, Manifest, scan
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker

THREADS = 8
CONTENT = f"{STORE}content/"
MARK = "tmp/restoring"
"""Object of the store that says which backup is being restored there, as long as it is."""


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
        artifacts_to: str | None = None,
    ) -> None:
        self.source = source
        self.store = store
        self.tracker = tracker
        self.database = database
        self.home = home
        self.progress = progress
        self.artifacts_to = artifacts_to
        self._roots: dict[str, str] = {}

    def run(self) -> Described:
        """Restore and verify everything; what a restore of the same backup left that was cut off is used.

        Raises:
            BadInput: the target is not empty, its MLflow has another schema, or files would go back to a
                place outside of it.
            VerificationFailed: a byte of the backup, or one that was brought back, is not as the backup says.
        """
        backup = bundle.described(self.source, self.store.signer)
        entries = sorted(bundle.read_list(self.source, backup.said["list"]), key=lambda one: one.path)
        if len(entries) != backup.said["objects"]:
            raise VerificationFailed("the backup lists another number of objects than its statement says")
        folders, small = self._sorted(entries)
        goes_on = self.store.driver.get_bytes(MARK) == backup.said["list"].encode()
        self._require_room(backup, {entry.path for entry in entries} if goes_on else set())
        with self.store.workdir() as scratch:
            tables = bundle.inside(TABLES, folders.pop(TABLES.rstrip("/")))
            with self._here(TABLES.rstrip("/"), tables, scratch / "tables") as rows:
                self._require_same(scan(rows), tables, TABLES)
                moved = self._moved(backup)
                artifacts = {key: of for key, of in folders.items() if key.startswith(STORE)}
                files = {key: bundle.inside(f"{key}/", folders[key]) for key in folders.keys() - artifacts}
                uris = {one.key: moved(one.uri) for one in run_files.kept(rows)}
                self._require_free(uris, files, goes_on)
                loaded = goes_on and self.database.holds(rows, scratch / "held", moved)
                if not loaded:
                    self.database.require_empty(own_experiment(self.tracker))
                self.store.driver.put_bytes(MARK, backup.said["list"].encode())
                self._content(artifacts, scratch)
                with ThreadPoolExecutor(THREADS) as pool:
                    for _ in pool.map(self._object, small):
                        pass
                if not loaded:
                    self.database.load(rows, moved)
                self._files(files, uris, scratch)
                self._verify(entries)
                self._verify_files(files, uris, scratch)
                if not self.database.holds(rows, scratch / "again", moved):
                    raise VerificationFailed(
                        f"{self.database.shown} has other rows than the backup; nobody else may write there: "
                        "restore again into a new database"
                    )
        self.store.driver.delete(MARK)
        return backup

    def _require_room(self, backup: Described, ours: set[str]) -> None:
        for key in self.store.driver.list(""):
            if key.partition("/")[0] not in PASSING and f"{STORE}{key}" not in ours:
                raise BadInput(
                    f"the store {self.store.root_uri} is not empty ({key}); restore into a new place: "
                    "another infra.store.uri or infra.home; or empty this one and "
                    "its database where another restore was cut off"
                )
        revision, version = self.database.revision(), backup.said["mlflow"]
        if revision != backup.said["revision"]:
            raise BadInput(
                f"the backup has the schema {backup.said['revision']} of MLflow {version}, and "
                f"{self.database.shown} has {revision}; install mlflow=={version}, restore, then upgrade "
                "with `mlflow db upgrade`"
            )

    def _require_free(self, uris: dict[str, str], files: dict[str, Manifest], goes_on: bool) -> None:
        """BadInput where files of runs would go to a place that is not the target's, or that has some."""
        for key in sorted(files):
            if key not in uris:
                raise VerificationFailed(f"the backup has {key}, which no row of its tables names")
            uri = uris[key]
            own = any(uri.startswith(f"{root.rstrip('/')}/") for root in self._roots.values())
            if not own and not run_files.through_server(uri):
                raise BadInput(
                    f"MLflow kept {key} at {uri}, where a restore would write into what others use; name a "
                    "new place with --artifacts-to s3://bucket/prefix"
                )
        with ThreadPoolExecutor(THREADS) as pool:
            there = pool.map(lambda key: run_files.sizes(self.tracker, uris[key]), sorted(files))
            for key, found in zip(sorted(files), there, strict=True):
                wanted = {entry.path: entry.size for entry in files[key].files}
                if found and not (goes_on and found.items() <= wanted.items()):
                    raise BadInput(
                        f"{uris[key]} is not empty ({min(found)}); restore with an MLflow server or an "
                        "--artifacts-to whose place for artifacts is new"
                    )

    def _sorted(self, entries: list[FileEntry]) -> tuple[dict[str, list[FileEntry]], list[FileEntry]]:
        """Entries of folders, by the folder's key, and those of single objects."""
        folders: dict[str, list[FileEntry]] = {TABLES.rstrip("/"): []}
        small = []
        for entry in entries:
            room = next((one for one in (CONTENT, FILES, MODELS, TRACES) if entry.path.startswith(one)), None)
            if room is not None:
                name = entry.path.removeprefix(room).partition("/")[0]
                folders.setdefault(f"{room}{name}", []).append(entry)
            elif entry.path.startswith(TABLES):
                folders[TABLES.rstrip("/")].append(entry)
            elif entry.path.startswith(STORE) and entry.path.split("/")[1] not in PASSING:
                small.append(entry)
            else:
                raise VerificationFailed(f"the backup lists {entry.path}, which no backup has")
        return folders, small

    def _content(self, artifacts: dict[str, list[FileEntry]], scratch: Path) -> None:
        for done, (prefix, entries) in enumerate(artifacts.items(), 1):
            manifest, key = bundle.inside(f"{prefix}/", entries), prefix.removeprefix(STORE)
            with (
                self._here(prefix, manifest, scratch / "content") as folder,
                self.store.driver.staged(folder, move=False) as staged,
            ):
                self._require_same(scan(staged), manifest, key)
                self.store.driver.put_folder(key, staged, manifest, force=False)
            self.progress(done, len(artifacts))

    def _object(self, entry: FileEntry) -> None:
        data = self.source.get_bytes(entry.path)
        if data is None or sha256_hex(data) != entry.sha256:
            what = "is missing" if data is None else "was changed"
            raise VerificationFailed(f"{self.source.uri(entry.path)} {what}; use another backup")
        self.store.driver.put_bytes(entry.path.removeprefix(STORE), data)

    def _files(self, files: dict[str, Manifest], uris: dict[str, str], scratch: Path) -> None:
        for key, manifest in files.items():
            with self._here(key, manifest, scratch / "files") as folder:
                self._require_same(scan(folder), manifest, key)
                run_files.put(self.tracker, uris[key], folder)

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
        places = backup.said["located"]
        self._roots = roots = {places["store"]: self.store.root_uri}
        for identity, location in places["experiments"].items():
            if location.startswith(f"{places['store']}/") or run_files.through_server(location):
                continue
            if urlsplit(location).scheme in ("", "file"):
                kept = self.home / ARTIFACTS
                own = location.rstrip("/").endswith(f"/{ARTIFACTS}")
                roots[location] = (kept if own else kept / f"experiment-{identity}").resolve().as_uri()
            elif self.artifacts_to is not None:
                roots[location] = f"{self.artifacts_to.rstrip('/')}/experiment-{identity}"
        longest_first = sorted(roots, key=len, reverse=True)

        def moved(text: str) -> str:
            for old in longest_first:
                if text == old or text.startswith(f"{old}/"):
                    return roots[old] + text.removeprefix(old)
            return text

        return moved

    def _verify(self, entries: list[FileEntry]) -> None:
        """Hash what is in the target's store now."""
        held = [entry for entry in entries if entry.path.startswith(STORE)]
        with ThreadPoolExecutor(THREADS) as pool:
            for entry, sha256 in zip(held, pool.map(self._hashed, held), strict=True):
                if sha256 != entry.sha256:
                    where = self.store.driver.uri(entry.path.removeprefix(STORE))
                    raise VerificationFailed(f"{where} did not arrive as the backup has it; restore again")

    def _verify_files(self, files: dict[str, Manifest], uris: dict[str, str], scratch: Path) -> None:
        """Hash what MLflow has beside its tables now."""
        for key, manifest in files.items():
            folder = scratch / "arrived"
            run_files.bring(self.tracker, uris[key], folder)
            if not folder.exists() or scan(folder).files != manifest.files:
                raise VerificationFailed(f"{uris[key]} did not arrive as the backup has it; restore again")
            shutil.rmtree(folder)

    def _hashed(self, entry: FileEntry) -> str:
        found = hashlib.sha256()
        try:
            for piece in self.store.driver.read(entry.path.removeprefix(STORE)):
                found.update(piece)
        except FileNotFoundError:
            return ""
        return found.hexdigest()
