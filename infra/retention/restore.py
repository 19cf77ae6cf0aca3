"""Restore of a backup into an empty store and an empty MLflow, elsewhere too; an interrupted one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.environment import ARTIFACTS
from resprout.infra.mlflow.errors import mlflow_errors
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.retention import mlflow_data
from resprout.infra.retention.backup import (
    PASSING,
    STORE,
    TABLES,
    Statement,
    folder_manifest,
    local_folder,
    read_list,
    read_statement,
)
from resprout.infra.retention.mlflow_data import (
    FILES,
    MODELS,
    TRACES,
    Database,
    file_folders,
    is_behind_server,
)
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import Driver
from resprout.infra.store.manifest import FileEntry, Manifest, scan
from resprout.infra.store.store import ArtifactStore

THREADS = 8
CONTENT = f"{STORE}content/"
MARK = "tmp/restoring"
"""Object of the store that says which backup is being restored there, until it is there and verified."""


@dataclass
class Restore:
    """One restore into `store` and the MLflow behind `tracker`, whose tables are in `database`.

    `verify` returns what is wrong with both once everything is there.
    """

    source: Driver
    store: ArtifactStore
    tracker: Tracker
    database: Database
    home: Path
    progress: Callable[[int, int], None] = lambda done, total: None
    artifacts_to: str | None = None
    verify: Callable[[], Sequence[str]] = lambda: ()

    def run(self) -> Statement:
        """Restore and verify everything; what an interrupted restore of the same backup left is used.

        Raises:
            BadInput: the target is not empty, its MLflow has another schema, or files would go back to a
                place outside of it.
            VerificationFailed: a byte of the backup, or one that was brought back, is not as the backup says.
        """
        backup = read_statement(self.source, self.store.signer)
        entries = sorted(read_list(self.source, backup.predicate["list"]), key=lambda one: one.path)
        if len(entries) != backup.predicate["objects"]:
            raise VerificationFailed("the backup lists another number of objects than its statement says")
        folders, small = _sorted(entries)
        mark = backup.predicate["list"].encode()
        resumed = self.store.driver.get_bytes(MARK) == mark
        self._require_room(backup, {entry.path for entry in entries} if resumed else set())
        with self.store.workdir() as scratch:
            tables = folders.pop(TABLES)
            with local_folder(self.source, TABLES, tables, scratch / "tables") as rows:
                _require_same(scan(rows), tables, TABLES)
                roots = self._roots(backup)
                moved = _mover(roots)
                artifacts = {key: of for key, of in folders.items() if key.startswith(STORE)}
                files = {key: of for key, of in folders.items() if key not in artifacts}
                uris = {one.key: moved(one.uri) for one in file_folders(rows)}
                self._require_free(uris, files, set(roots.values()), resumed)
                loaded = resumed and self.database.holds(rows, scratch / "held", moved)
                if not loaded:
                    self.database.require_empty(_own_experiment(self.tracker))
                self.store.driver.put_bytes(MARK, mark)
                self._content(artifacts, scratch)
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(self._object, small))
                if not loaded:
                    self.database.load(rows, moved)
                self._files(files, uris, scratch)
                if not self.database.holds(rows, scratch / "again", moved):
                    raise VerificationFailed(
                        f"{self.database.shown} has other rows than the backup; no one else may write there: "
                        "restore again into a new database"
                    )
        if problems := self.verify():
            raise VerificationFailed("everything was brought back, but: " + "; ".join(problems))
        self.store.driver.delete(MARK)
        return backup

    def _require_room(self, backup: Statement, ours: set[str]) -> None:
        for key in self.store.driver.list(""):
            if key.partition("/")[0] not in PASSING and f"{STORE}{key}" not in ours:
                raise BadInput(
                    f"the store {self.store.root_uri} is not empty ({key}); restore into a new place: "
                    "another infra.store.uri or infra.home; or empty this one and "
                    "its database where another restore was cut off"
                )
        revision, version = self.database.revision(), backup.predicate["mlflow"]
        if revision != backup.predicate["revision"]:
            raise BadInput(
                f"the backup has the schema {backup.predicate['revision']} of MLflow {version}, and "
                f"{self.database.shown} has {revision}; install mlflow=={version}, restore, then upgrade "
                "with `mlflow db upgrade`"
            )

    def _require_free(
        self, uris: dict[str, str], files: dict[str, Manifest], roots: set[str], resumed: bool
    ) -> None:
        """BadInput where files of runs would go to a place that is not the target's, or that has some."""
        for key in sorted(files):
            if key not in uris:
                raise VerificationFailed(f"the backup has {key}, which no row of its tables names")
            uri = uris[key]
            own = any(uri.startswith(f"{root.rstrip('/')}/") for root in roots)
            if not own and not is_behind_server(uri):
                raise BadInput(
                    f"MLflow kept {key} at {uri}, where a restore would write into what others use; name a "
                    "new place with --artifacts-to s3://bucket/prefix"
                )
        with ThreadPoolExecutor(THREADS) as pool:
            there = pool.map(lambda key: mlflow_data.file_sizes(self.tracker, uris[key]), sorted(files))
            for key, found in zip(sorted(files), there, strict=True):
                wanted = {entry.path: entry.size for entry in files[key].files}
                if found and not (resumed and found.items() <= wanted.items()):
                    raise BadInput(
                        f"{uris[key]} is not empty ({min(found)}); restore with an MLflow server or an "
                        "--artifacts-to whose place for artifacts is new"
                    )

    def _content(self, artifacts: dict[str, Manifest], scratch: Path) -> None:
        for done, (prefix, manifest) in enumerate(artifacts.items(), 1):
            key = prefix.removeprefix(STORE)
            with (
                local_folder(self.source, prefix, manifest, scratch / "content") as folder,
                self.store.driver.staged(folder, move=False) as staged,
            ):
                _require_same(scan(staged), manifest, key)
                self.store.driver.put_folder(key, staged, manifest, force=False)
            self.progress(done, len(artifacts))

    def _object(self, entry: FileEntry) -> None:
        data = self.source.get_bytes(entry.path)
        if data is None or sha256_hex(data) != entry.sha256:
            what = "is missing" if data is None else "was changed"
            raise VerificationFailed(f"{self.source.uri(entry.path)} {what}; use another backup")
        self.store.driver.put_bytes(entry.path.removeprefix(STORE), data)

    def _files(self, files: dict[str, Manifest], uris: dict[str, str], scratch: Path) -> None:
        """Bring back what MLflow keeps beside its tables, and hash what arrived."""
        for number, (key, manifest) in enumerate(files.items()):
            with local_folder(self.source, key, manifest, scratch / "files") as folder:
                _require_same(scan(folder), manifest, key)
                mlflow_data.upload_files(self.tracker, uris[key], folder)
            arrived = scratch / f"arrived-{number}"
            mlflow_data.download_files(self.tracker, uris[key], arrived)
            if not arrived.exists() or scan(arrived).files != manifest.files:
                raise VerificationFailed(f"{uris[key]} did not arrive as the backup has it; restore again")
            shutil.rmtree(arrived)

    def _roots(self, backup: Statement) -> dict[str, str]:
        """Return by each old place, of the store and of experiments, the place that replaces it."""
        places = backup.predicate["located"]
        roots = {places["store"]: self.store.root_uri}
        for identity, location in places["experiments"].items():
            if location.startswith(f"{places['store']}/") or is_behind_server(location):
                continue
            if urlsplit(location).scheme in ("", "file"):
                kept = self.home / ARTIFACTS
                own = location.rstrip("/").endswith(f"/{ARTIFACTS}")
                roots[location] = (kept if own else kept / f"experiment-{identity}").resolve().as_uri()
            elif self.artifacts_to is not None:
                roots[location] = f"{self.artifacts_to.rstrip('/')}/experiment-{identity}"
        return roots


def _sorted(entries: list[FileEntry]) -> tuple[dict[str, Manifest], list[FileEntry]]:
    """Return the manifests of the folders, by the folder's key, and the entries of single objects."""
    folders: dict[str, list[FileEntry]] = {TABLES: []}
    small = []
    for entry in entries:
        room = next((one for one in (CONTENT, FILES, MODELS, TRACES) if entry.path.startswith(one)), None)
        if room is not None:
            name = entry.path.removeprefix(room).partition("/")[0]
            folders.setdefault(f"{room}{name}", []).append(entry)
        elif entry.path.startswith(f"{TABLES}/"):
            folders[TABLES].append(entry)
        elif entry.path.startswith(STORE) and entry.path.split("/")[1] not in PASSING:
            small.append(entry)
        else:
            raise VerificationFailed(f"the backup lists {entry.path}, which no backup has")
    return {key: folder_manifest(f"{key}/", of) for key, of in folders.items()}, small


def _mover(roots: dict[str, str]) -> Callable[[str], str]:
    """Return a function that replaces the beginning of a text that is or is below an old place."""
    longest_first = sorted(roots, key=len, reverse=True)

    def moved(text: str) -> str:
        for old in longest_first:
            if text == old or text.startswith(f"{old}/"):
                return roots[old] + text.removeprefix(old)
        return text

    return moved


def _require_same(found: Manifest, wanted: Manifest, where: str) -> None:
    if found.files != wanted.files:
        path = min(entry.path for entry in {*found.files} ^ {*wanted.files})
        raise VerificationFailed(f"{where} of the backup was changed ({path}); use another backup")


@mlflow_errors
def _own_experiment(tracker: Tracker) -> str:
    """Return the name of the experiment that new runs go to, which connecting makes."""
    return str(tracker.client.get_experiment(tracker.experiment_id).name)
