"""Backup of store and MLflow: a dump of the tables first, then a sync of everything that their rows name.

A backup is objects under keys, a list of them with hashes, and a signed statement about the list:

store/<key of the store>             what a store keeps, not leases, references, marks, checkpoints, scratch
mlflow/tables/<table>.jsonl          every row of MLflow's database
mlflow/files/<run id>/<path>         the files of runs
mlflow/models/<model id>/<path>      the files of MLflow's logged models
mlflow/traces/<trace id>/<path>      the files of traces
objects.jsonl                        key, size and hashes of each of the above, a line each
backup.json                          DSSE envelope: hash of the list, places, versions; written last
seen.jsonl                           how listings showed each object, at its source and here, after the backup

The last saves requests and proves nothing, so the statement does not name it.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resprout.configs.errors import BadInput, Transient, VerificationFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.infra import identity
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.statement import predicate_of, statement
from resprout.infra.retention import mlflow_data
from resprout.infra.retention.gc import LEASE
from resprout.infra.retention.mlflow_data import Database, FileFolder, file_folders, rows_of
from resprout.infra.store.cache import download
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.driver import Driver, Listed, open_driver
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.manifest import FileEntry, Manifest, content_digest, hash_stream, scan
from resprout.infra.store.signing import Signer
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.stored_json import parse_json

PREDICATE = "urn:resprout:backup:v1"
STATEMENT, LIST, SEEN = "backup.json", "objects.jsonl", "seen.jsonl"
STORE, TABLES = "store/", "mlflow/tables"
PASSING = {"locks", "pins", "gc", "tmp", "checkpoints"}
"""Rooms of a store that say who is at work now, and how far."""
APART = {"content", "quarantine", "mlflow"}
"""Rooms that are not copied object by object: files of artifacts and runs, and what was set aside."""
LEDGERS = "registry/"
STATEMENTS = (LEDGERS, "timestamps/", "seals/")
"""Rooms of the store whose objects say what MLflow holds; each before those that its objects need."""
THREADS = 8
DUMPS = 60
PAUSE_SECONDS = 1.0
"""Seconds between two dumps of the tables, of at most DUMPS, while runs register models."""


@dataclass
class Counted:
    """Objects of the backup, and how many of them and of their bytes were copied this time."""

    objects: int = 0
    bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0


@dataclass
class Backup:
    """One backup of `store`, and of the MLflow behind `tracker`, whose tables are in `database`."""

    store: ArtifactStore
    tracker: Tracker
    database: Database
    target: Driver
    progress: Callable[[int, int], None] = lambda done, total: None
    _listed: dict[str, Listed] = field(default_factory=dict, init=False)

    def run(self, locks: LeaseLockManager) -> Counted:
        """Bring the backup up to date; no gc deletes meanwhile, runs may go on.

        Raises:
            BadInput: a gc or another backup is at work.
            Transient: runs register models all the time.
            VerificationFailed: an artifact is damaged, so that a copy of it would be worth nothing.
        """
        me = f"backup of {self.store.root_uri}"
        if not locks.acquire_lock(LEASE, me, acquire_timeout=0):
            raise BadInput(f"a gc or a backup is at work on {self.store.root_uri}; wait for it, or end it")
        try:
            with self.store.workdir() as scratch:
                tables = scratch / "tables"
                revision = self.database.revision()
                rows, statements = self._dump(locks, tables)
                self._mirror = Mirror(self.target)
                self._mirror.put_folder(TABLES, tables, scan(tables))
                _each(partial(self._files, scratch), list(file_folders(tables)))
                # After the tables: every record that a row or a statement names is in the store by now. Rooms
                # that others point to are listed once more, so that nothing points nowhere.
                for room in ("", "records/", "manifests/", "content/"):
                    self._listed.update({one.key: one for one in self.store.driver.entries(room)})
                _each(self._object, [one for one in self._listed.values() if _is_copied(one.key, statements)])
                manifests = [key for key in self._mirror.entries if key.startswith(f"{STORE}manifests/")]
                digests = sorted(key.rpartition("/")[2].removesuffix(".json") for key in manifests)
                digests = [digest for digest in digests if DIGEST.fullmatch(digest)]
                _each(partial(self._artifact, scratch), digests, self.progress)
                locations = {
                    str(row["experiment_id"]): row["artifact_location"]
                    for row in rows_of(tables, "experiments")
                }
                about = {
                    "rows": rows,
                    "revision": revision,
                    "located": {"store": self.store.root_uri, "experiments": locations},
                }
                return self._mirror.finish(self.store.signer, about)
        finally:
            locks.retire(LEASE, me)

    def _dump(self, locks: LeaseLockManager, folder: Path) -> tuple[dict[str, int], Set[str]]:
        """Dump the tables into the new `folder`; return the rows of each, and the statements that fit them.

        A statement follows what it speaks of, so one that was there before the dump speaks of rows that are
        in it. The other way round a version is in MLflow before its ledger entry is in the store: the dump
        counts only where no run was between the two.

        Raises:
            Transient: runs registered all the time.
        """
        driver = self.store.driver
        for left in reversed(range(DUMPS)):
            folder.mkdir()
            statements = {key for room in STATEMENTS for key in driver.list(room)}
            rows = self.database.dump(folder)
            names = [row["name"] for row in rows_of(folder, "registered_models")]
            entries = {key for key in statements if key.startswith(LEDGERS)}
            busy = any(locks.is_locked(f"register {name}") for name in names)
            if not busy and entries == set(driver.list(LEDGERS)):
                return rows, statements
            shutil.rmtree(folder)
            if left:
                time.sleep(PAUSE_SECONDS)
        raise Transient(
            f"runs were registering models each of {DUMPS} times that the backup looked; run it again later"
        )

    def _files(self, scratch: Path, one: FileFolder) -> None:
        """Copy what MLflow keeps beside its tables, of one run, model or trace."""
        known = self._mirror.folder(one.key)
        if known and all(self._mirror.is_unchanged(entry.path, one.version) for entry in known):
            there = mlflow_data.file_sizes(self.tracker, one.uri)
            if there == {entry.path.removeprefix(f"{one.key}/"): entry.size for entry in known}:
                self._mirror.keep(known, one.version)
                return
        folder = scratch / one.key
        if mlflow_data.download_files(self.tracker, one.uri, folder):
            self._mirror.put_folder(one.key, folder, scan(folder), one.version)
            shutil.rmtree(folder)

    def _object(self, listed: Listed) -> None:
        """Copy a small object of the store."""
        path, stamp = f"{STORE}{listed.key}", _stamp(listed)
        if self._mirror.is_unchanged(path, stamp):
            self._mirror.keep([self._mirror.before[path]], stamp)
        elif (data := self.store.driver.get_bytes(listed.key)) is not None:
            self._mirror.put_bytes(path, data, stamp)

    def _artifact(self, scratch: Path, digest: str) -> None:
        """Copy the files of an artifact; those that were erased are missing there too."""
        prefix = f"content/{digest}"
        known = self._mirror.folder(f"{STORE}{prefix}")
        erased = f"{STORE}tombstones/{digest}.json" in self._mirror.entries
        whole = known and not erased and folder_manifest(f"{STORE}{prefix}/", known).digest == digest
        if whole and all(self._mirror.has(one) and self._is_listed(one) for one in known):
            self._mirror.keep(known)
            return
        manifest = self.store.manifest(digest)
        if (stone := self.store.tombstone(digest)) is not None:
            left = [entry for entry in manifest.files if entry.path not in stone.files]
            if not left:
                return
            manifest = folder_manifest("", left)
        for entry in _below(f"{STORE}{prefix}/", manifest):
            # What came after the listing is looked up.
            key = entry.path.removeprefix(STORE)
            if not self._is_listed(entry) and not self.store.driver.matches(key, entry):
                raise VerificationFailed(
                    f"artifact {digest} is not complete, so a copy would be worth nothing; `resprout verify "
                    f"{digest}` says what is missing"
                )
        if self._mirror.has_folder(f"{STORE}{prefix}", manifest):
            return
        with local_folder(self.store.driver, prefix, manifest, scratch / prefix) as folder:
            self._mirror.put_folder(f"{STORE}{prefix}", folder, manifest)

    def _is_listed(self, entry: FileEntry) -> bool:
        listed = self._listed.get(entry.path.removeprefix(STORE))
        return listed is not None and listed.size == entry.size


class Mirror:
    """The objects of a backup at `target`: what an earlier one left untouched, and what this one puts."""

    def __init__(self, target: Driver) -> None:
        self.target = target
        self.before: dict[str, FileEntry] = {}
        """Entries that an earlier backup has, by path."""
        with suppress(VerificationFailed):
            self.before = {entry.path: entry for entry in read_list(target)}
        self.entries: dict[str, FileEntry] = {}
        self._copied: set[str] = set()
        self._stamps: dict[str, str] = {}
        self._folders: dict[str, list[FileEntry]] = {}
        for entry in self.before.values():
            self._folders.setdefault("/".join(entry.path.split("/")[:3]), []).append(entry)
        self._sources, own = _seen(target)
        self._untouched = {
            one.key for one in target.entries("") if _stamp(one) and _stamp(one) == own.get(one.key)
        }
        target.delete(STATEMENT)

    def has(self, entry: FileEntry) -> bool:
        """Whether the backup has these bytes, untouched since it was made."""
        return self.before.get(entry.path) == entry and entry.path in self._untouched

    def is_unchanged(self, path: str, stamp: str | None) -> bool:
        """Whether the backup has this object, and the source is as it was then."""
        entry = self.before.get(path)
        return entry is not None and bool(stamp) and self._sources.get(path) == stamp and self.has(entry)

    def folder(self, prefix: str) -> list[FileEntry]:
        """Return the earlier entries of an artifact or of the files of a run, a model or a trace."""
        return self._folders.get(prefix, [])

    def keep(self, entries: Iterable[FileEntry], stamp: str | None = None, copied: bool = False) -> None:
        """Count objects that are there to this backup; `stamp` is how their source looked."""
        for entry in entries:
            self.entries[entry.path] = entry
            if copied:
                self._copied.add(entry.path)
            if stamp:
                self._stamps[entry.path] = stamp

    def put_bytes(self, path: str, data: bytes, stamp: str | None) -> None:
        """Write a small object, unless it is there."""
        entry = hash_stream(BytesIO(data), path)
        there = self.has(entry)
        if not there:
            self.target.put_bytes(path, data)
        self.keep([entry], stamp, not there)

    def has_folder(self, prefix: str, manifest: Manifest, stamp: str | None = None) -> bool:
        """Keep a folder's files where all of them are there already; else return False."""
        entries = _below(f"{prefix}/", manifest)
        there = all(self.has(entry) for entry in entries)
        if there:
            self.keep(entries, stamp)
        return there

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, stamp: str | None = None) -> None:
        """Write a folder's files, unless they are there; VerificationFailed where the manifest differs."""
        if self.has_folder(prefix, manifest, stamp):
            return
        with self.target.staged(folder, move=False) as staged:
            if scan(staged).files != manifest.files:
                raise VerificationFailed(
                    f"{prefix} is not as its manifest says; `resprout verify` says which file was changed"
                )
            self.target.put_folder(prefix, staged, manifest, force=False)
        self.keep(_below(f"{prefix}/", manifest), stamp, copied=True)

    def finish(self, signer: Signer, about: Mapping[str, object]) -> Counted:
        """Write list and statement, then delete what the backup no longer holds."""
        lines = [f"{self.entries[path].model_dump_json()}\n" for path in sorted(self.entries)]
        data = "".join(lines).encode()
        self.target.put_bytes(LIST, data)
        predicate = {
            "list": hashlib.sha256(data).hexdigest(),
            "objects": len(self.entries),
            **about,
            "mlflow": importlib.metadata.version("mlflow"),
            "resprout": identity.code_identity()["resprout"],
            "who": identity.who(),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_statement(self.target, signer, predicate)
        listed = [one for top in (STORE, "mlflow/") for one in self.target.entries(top)]
        self.target.delete_all([one.key for one in listed if one.key not in self.entries])
        kept = sorted((one for one in listed if one.key in self.entries), key=lambda one: one.key)
        seen = [json.dumps([one.key, self._stamps.get(one.key), _stamp(one)]) for one in kept]
        self.target.put_bytes(SEEN, "".join(f"{line}\n" for line in seen).encode())
        copied = [self.entries[path].size for path in self._copied]
        total = sum(entry.size for entry in self.entries.values())
        return Counted(len(self.entries), total, len(copied), sum(copied))


@dataclass(frozen=True)
class Statement:
    """The statement of a backup, and the known keys that signed it."""

    predicate: dict[str, Any]
    signed_by: tuple[str, ...]


def write_statement(target: Driver, signer: Signer, predicate: dict[str, Any]) -> None:
    """Write the statement, which makes the backup count."""
    signed = {**predicate, "key": signer.own_id}
    target.put_bytes(STATEMENT, signer.envelope(statement("resprout backup", PREDICATE, signed)))


def read_statement(source: Driver, signer: Signer) -> Statement:
    """Read the statement of a backup.

    Raises:
        BadInput: there is no backup, or one that was not finished.
        VerificationFailed: it is damaged, or unsigned where signatures are required.
    """
    data = source.get_bytes(STATEMENT)
    where = source.uri(STATEMENT)
    if data is None:
        raise BadInput(f"there is no finished backup at {where}; give its place, or run the backup again")
    opened = signer.open(data, f"statement {where}")
    predicate = predicate_of(opened, PREDICATE, f"statement {where}")
    if signer.required and not opened.signed_by:
        raise VerificationFailed(f"the statement {where} has no signature that counts")
    return Statement(predicate, opened.signed_by)


def read_list(source: Driver, sha256: str | None = None) -> Iterator[FileEntry]:
    """Yield the listed objects; VerificationFailed where the list has not this hash, or is unsafe."""
    found, left = hashlib.sha256(), b""
    where = source.uri(LIST)
    try:
        for piece in source.read(LIST):
            found.update(piece)
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                yield FileEntry.model_validate_json(line)
    except FileNotFoundError as error:
        raise VerificationFailed(f"{where} is missing; run the backup again") from error
    except ValidationError as error:
        raise VerificationFailed(f"{where} is damaged: {error.errors()[0]['msg']}") from error
    if left or (sha256 is not None and found.hexdigest() != sha256):
        raise VerificationFailed(f"{where} was changed: it is not the list that {STATEMENT} names")


def folder_manifest(prefix: str, entries: Iterable[FileEntry]) -> Manifest:
    """Return entries below a prefix as the manifest of that folder."""
    cut = [entry.model_copy(update={"path": entry.path.removeprefix(prefix)}) for entry in entries]
    files = tuple(sorted(cut, key=lambda one: one.path))
    return Manifest(digest=content_digest(files), files=files)


@contextmanager
def local_folder(driver: Driver, prefix: str, manifest: Manifest, scratch: Path) -> Iterator[Path]:
    """Yield the files below a prefix in a local folder: the driver's own, else downloaded to `scratch`."""
    folder = driver.folder(prefix)
    if folder is not None:
        yield folder
        return
    scratch.mkdir(parents=True)
    download(driver, prefix, manifest, scratch)
    yield scratch
    shutil.rmtree(scratch)


def open_backup(place: str, config: StoreConfig, endpoint_url: str | None) -> Driver:
    """Open the folder or bucket of a backup, with the credentials of the store."""
    changed = {"uri": place, "endpoint_url": endpoint_url or config.endpoint_url}
    return open_driver(config.model_copy(update=changed), "'{uri}' is no place for a backup")


def require_apart(store: ArtifactStore, driver: Driver) -> None:
    """BadInput where the backup would lie in the store, or the store in the backup."""
    one, other = f"{store.root_uri}/", f"{driver.uri('store').removesuffix('/store')}/"
    if one.startswith(other) or other.startswith(one):
        raise BadInput(f"{other} and the store {one} lie in each other; give another place for the backup")


def _each(
    copy: Callable[[Any], None],
    things: Sequence[Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Copy several at once; the first error cancels what has not started."""
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done, _ in enumerate(pool.map(copy, things), 1):
                progress(done, len(things))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _is_copied(key: str, statements: Set[str]) -> bool:
    """Whether an object of the store is copied by itself; of statements only those that fit the tables."""
    return key.partition("/")[0] not in PASSING | APART and (
        not key.startswith(STATEMENTS) or key in statements
    )


def _below(prefix: str, manifest: Manifest) -> list[FileEntry]:
    """Return the files of a folder as entries of the backup."""
    return [entry.model_copy(update={"path": f"{prefix}{entry.path}"}) for entry in manifest.files]


def _stamp(listed: Listed) -> str | None:
    """Return how a listing shows an object, which changes with it; None where it shows too little."""
    return f"{listed.size} {listed.token}" if listed.token else None


def _seen(target: Driver) -> tuple[dict[str, str], dict[str, str]]:
    """Return the stamps of each object at its source and in the backup, after the last one."""
    sources, own = {}, {}
    for line in (target.get_bytes(SEEN) or b"").splitlines():
        try:
            key, source, here = parse_json(line, SEEN)
        except (ValueError, TypeError):
            return {}, {}
        sources[str(key)], own[str(key)] = source, here
    return sources, own
