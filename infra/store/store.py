"""Content under its digest, a manifest that makes it visible, records of how it came to be."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig, StoreConfig
from resprout.infra.store import keys, tombstones
from resprout.infra.store.cache import LocalCache, NotesKey, VerifiedFiles, download, stamps
from resprout.infra.store.canonical import check_digest, sha256_hex
from resprout.infra.store.driver import Driver, open_driver
from resprout.infra.store.filesystem import free_bytes, private_folder
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.manifest import FileEntry, Manifest, scan
from resprout.infra.store.record import Record
from resprout.infra.store.signing import RECORD, UNSIGNED, Signer
from resprout.infra.store.stored_json import parse_json
from resprout.infra.store.tombstones import Tombstone

THREADS = 8
NOTE_OF_MLFLOW = "registered_model_meta"
"""File that MLflow writes beside an MLmodel when it loads a registered version from a folder, which it does
in place: the version's name and number, which no one reads from here."""
NOTE_BYTES = 1000


class ArtifactStore:
    """Publish and open artifacts; safe for any number of processes and machines at once."""

    def __init__(self, driver: Driver, home: Path, cache_bytes: int, signer: Signer = UNSIGNED) -> None:
        self.driver = driver
        self.read_only = False
        """Whether nothing is to change here, as where an auditor looks: what is damaged stays as it is."""
        self.signer = signer
        self.home = home.absolute()
        place = sha256_hex(driver.uri("content").encode())[:16]
        notes = NotesKey(self.home / "verified", signer)
        self._cache = LocalCache(self.home / "cache" / place, cache_bytes, notes)
        self._verified = VerifiedFiles(self.home / "verified" / place, notes)
        self.in_use: InUseReferences | None = None
        """References to what the run of this process relies on, where one is at work."""

    @classmethod
    def from_config(cls, config: StoreConfig, home: Path, proof: ProofConfig | None = None) -> ArtifactStore:
        """The store that `infra.store` names, with the keys of `infra.proof`.

        `home` takes caches and, without a uri, the store itself.
        """
        signer = UNSIGNED if proof is None else Signer.from_config(proof)
        place = config if config.uri is not None else config.model_copy(update={"uri": str(home / "store")})
        return cls(open_driver(place), home, int(config.cache_gb * 1e9), signer)

    @property
    def root_uri(self) -> str:
        return self.driver.uri("content").removesuffix("/content")

    def uri(self, digest: str) -> str:
        """Return the address of the artifact's folder."""
        return self.driver.uri(_content(digest))

    def folder(self, digest: str) -> Path | None:
        """Return the local folder of the artifact's files, unchecked; None where the store is no folder."""
        return self.driver.folder(_content(digest))

    def workdir(self) -> AbstractContextManager[Path]:
        """Make a private folder where publishing with `move` costs a rename; removed afterwards."""
        return private_folder(self._scratch())

    def publish(
        self, folder: Path, guard: Callable[[], None] | None = None, *, move: bool = False
    ) -> Manifest:
        """Keep the files under `folder` and return their manifest; equal content is stored once.

        `guard` is called right before the artifact becomes visible; it raises to prevent that.
        `move` lets the store take the files out of `folder`, which is then left empty.

        Raises:
            BadInput: no file, links, or unsafe names in `folder`; no access to the store.
            StageFailed: the disk is full.
            Transient: the store cannot be reached.
        """
        with self.driver.staged(folder, move=move) as staged:
            manifest = scan(staged)
            digest = manifest.digest
            self.rely_on(digest)
            if self.check(digest):
                if guard:
                    guard()
                self.confirm()
                return manifest
            if self.driver.head(_manifest(digest)) is not None:
                # What was erased keeps its manifest, so only here it can be that.
                tombstones.refuse(self.driver, self.signer, digest)
            damaged = self.driver.head(_quarantine(digest)) is not None
            self.driver.put_folder(_content(digest), staged, manifest, force=damaged)
            if guard:
                guard()
            data = manifest.dumps()
            if not self.driver.put_if_absent(_manifest(digest), data):
                self.driver.put_bytes(_manifest(digest), data)
            if damaged:
                self.driver.delete(_quarantine(digest))
            content = self.driver.folder(_content(digest))
            if content is not None:
                self._verified.remember(digest, stamps(content, manifest))
            self.confirm()
            return manifest

    def rely_on(self, digest: str) -> None:
        """Keep `gc` from deleting an artifact while the run of this process is at work; else do nothing.

        To be called before it is looked whether the artifact is there (see `in_use`).
        """
        if self.in_use is not None:
            self.in_use.hold(digest)

    def confirm(self) -> None:
        """StageFailed where the run was paused so long that what it relies on was deleted."""
        if self.in_use is not None:
            self.in_use.confirm(self.check)

    def manifest(self, digest: str) -> Manifest:
        """Read the manifest of an artifact; BadInput when there is none, VerificationFailed when damaged."""
        data = self.driver.get_bytes(_manifest(digest))
        if data is None:
            raise BadInput(
                f"there is no artifact {digest} in {self.root_uri}; give a digest that `lineage` shows"
            )
        return Manifest.loads(data, digest)

    def check(self, digest: str) -> bool:
        """Whether the artifact is visible and all files are there, by size and stored checksum alone."""
        data = self.driver.get_bytes(_manifest(digest))
        if data is None:
            return False
        try:
            manifest = Manifest.loads(data, digest)
        except VerificationFailed:
            return False
        with ThreadPoolExecutor(THREADS) as pool:
            return all(
                pool.map(lambda e: self.driver.matches(f"{_content(digest)}/{e.path}", e), manifest.files)
            )

    @contextmanager
    def open(self, digest: str) -> Iterator[Path]:
        """Open a local folder with the artifact's files, hashed in full on first use on this machine.

        Raises:
            VerificationFailed: bytes are not those that were published; the artifact is set aside, so that
                its stage runs again.
        """
        manifest = self.manifest(digest)
        content = self.driver.folder(_content(digest))
        if content is None:
            with self._cache.open(manifest, lambda folder: self._fetch(manifest, folder)) as cached:
                yield cached
            return
        now = stamps(content, manifest)
        if not self._verified.holds(digest, now):
            tombstones.refuse(self.driver, self.signer, digest)
            if problems := self.verify(digest):
                raise self._set_aside(digest, problems[0])
            if not self.read_only:
                self._verified.remember(digest, now)
        yield content

    def read(self, digest: str, path: str) -> bytes:
        """Read one small file of the artifact and check its SHA-256; nothing else is downloaded."""
        entry = next((one for one in self.manifest(digest).files if one.path == path), None)
        if entry is None:
            raise BadInput(f"artifact {digest} has no file {path}; see its manifest for what it has")
        data = self.driver.get_bytes(f"{_content(digest)}/{path}")
        if data is None:
            tombstones.refuse(self.driver, self.signer, digest)
        if data is None or sha256_hex(data) != entry.sha256:
            raise VerificationFailed(f"{self.uri(digest)}/{path} is missing or changed; `verify` says more")
        return data

    def read_json(self, digest: str, path: str) -> Any:
        """Return the value in one small JSON file of the artifact; errors as `read` has them."""
        return parse_json(self.read(digest, path), f"{path} of artifact {digest}")

    def verify(self, digest: str, share: float = 1.0, draw: random.Random | None = None) -> list[str]:
        """Hash every stored byte of the artifact and return what is wrong; empty when nothing is.

        With a `share` under 1 only so many of its files are hashed, drawn with `draw`; of the others size
        and stored checksum count. A file that was erased on request is as it should be when it is missing.
        """
        manifest = self.manifest(digest)
        prefix = _content(digest)
        stone = self.tombstone(digest)
        erased = stone.files if stone is not None else {}
        draw = draw or random.Random(0)
        hashed = {entry.path for entry in manifest.files if share >= 1.0 or draw.random() < share}

        def problem(entry: FileEntry) -> str | None:
            key = f"{prefix}/{entry.path}"
            try:
                if entry.path in erased:
                    return self._erasure_problem(key, entry, erased[entry.path])
                if entry.path in hashed:
                    return self._content_problem(key, entry)
            except VerificationFailed as error:
                return str(error)
            if self.driver.matches(key, entry):
                return None
            return (
                f"{self.driver.uri(key)} is missing, or has another size or checksum than its manifest says"
            )

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(problem, manifest.files))
        problems = list(dict.fromkeys(problem for problem in found if problem))
        listed = {f"{prefix}/{entry.path}" for entry in manifest.files}
        try:
            added = [
                key
                for key in self.driver.list(f"{prefix}/")
                if key not in listed and not self._is_note_of_mlflow(key, listed)
            ]
        except VerificationFailed as error:
            return list(dict.fromkeys([*problems, str(error)]))
        return problems + [f"{self.driver.uri(key)} was added" for key in added]

    def _is_note_of_mlflow(self, key: str, listed: Collection[str]) -> bool:
        folder, _, name = key.rpartition("/")
        if name != NOTE_OF_MLFLOW or f"{folder}/MLmodel" not in listed:
            return False
        return (self.driver.head(key) or 0) <= NOTE_BYTES and all(
            line.startswith(("model_name:", "model_version:"))
            for line in (self.driver.get_bytes(key) or b"").decode(errors="replace").splitlines()
        )

    def tombstone(self, digest: str) -> Tombstone | None:
        """Return the tombstone of the artifact; None where nothing was erased."""
        return tombstones.of(self.driver, self.signer, digest)

    def put_record(self, record: Record) -> str:
        """Keep a record, signed where there is a key, and return its id; the same record twice is one."""
        identity, data = record.id, record.dumps()
        beside = dict.fromkeys(index_keys(identity, record), b"")
        if (signature := self.signer.signature(RECORD, data)) is not None:
            beside[f"signatures/{identity}/{self.signer.own_id}"] = signature
        # The record comes last: what is around it is there once it can be seen.
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda item: self.driver.put_bytes(*item), beside.items()))
        if not self.driver.put_if_absent(_record(identity), data):
            raise VerificationFailed(f"record {identity} is there with other bytes than its id says")
        return identity

    def sign_record(self, record_id: str) -> None:
        """Put the own key's signature beside a record that is there; BadInput where it is not."""
        signature = self.signer.signature(RECORD, self.get_record(record_id).dumps())
        if signature is not None:
            self.driver.put_bytes(f"signatures/{record_id}/{self.signer.own_id}", signature)

    def records_of(self, digest: str) -> list[str]:
        """Return the ids of the records that made this content, without reading them."""
        return self._second("made", check_digest(digest))

    def children(self, record_id: str) -> list[str]:
        """Return the ids of the records that have this one as a parent, without reading them."""
        return self._second("used", check_digest(record_id, "record id"))

    def signatures_of(self, record_id: str) -> list[str]:
        """Return the ids of all keys, known or not, that signed the record."""
        return self._second("signatures", check_digest(record_id, "record id"))

    def _second(self, room: str, first: str) -> list[str]:
        return [second for _, second in keys.own(self.driver, room, f"{first}/")]

    def signed_by(self, record_id: str, data: bytes) -> tuple[str, ...]:
        """Return the ids of the known keys whose signature on the record's bytes holds."""
        check_digest(record_id, "record id")

        def holds(key_id: str) -> bool:
            signature = self.driver.get_bytes(f"signatures/{record_id}/{key_id}")
            return signature is not None and self.signer.accepts(key_id, RECORD, data, signature)

        return tuple(key_id for key_id in self.signer.key_ids if holds(key_id))

    def get_record(self, record_id: str) -> Record:
        """Read a record; BadInput when there is none, VerificationFailed when it was changed."""
        data = self.driver.get_bytes(_record(record_id))
        if data is None:
            raise BadInput(f"there is no record {record_id} in {self.root_uri}; see `lineage`")
        return Record.loads(data, record_id)

    def has_record(self, record_id: str) -> bool:
        """Whether the record is there; its bytes are not read."""
        return self.driver.head(_record(record_id)) is not None

    def records(self) -> Iterator[tuple[str, Record]]:
        """Yield all records with their ids, in the order of the ids."""
        ids = [key.removeprefix("records/").removesuffix(".json") for key in self.driver.list("records/")]
        with ThreadPoolExecutor(THREADS) as pool:
            yield from zip(ids, pool.map(self.get_record, ids), strict=True)

    def forget(self, digest: str) -> None:
        """Remove this machine's copies of an artifact that is no longer in the store."""
        self._verified.forget(digest)
        self._cache.forget(digest)

    def ensure_writable(self) -> None:
        """Raise BadInput or Transient with one clear sentence when a run could not publish here."""
        self.driver.ensure_writable()

    def free_bytes(self) -> int:
        """Return the free bytes of the local disk where artifacts are written or cached."""
        return free_bytes(self._scratch())

    def _scratch(self) -> Path:
        content = self.driver.folder("content")
        return content.parent / "tmp" if content is not None else self.home / "tmp"

    def _content_problem(self, key: str, entry: FileEntry) -> str | None:
        try:
            size, sha256 = _hash(self.driver.read(key))
        except FileNotFoundError:
            return f"{self.driver.uri(key)} is missing"
        if size != entry.size:
            return f"{self.driver.uri(key)} has {size} bytes instead of {entry.size}"
        if sha256 != entry.sha256:
            return f"{self.driver.uri(key)} was changed: its SHA-256 is {sha256} instead of {entry.sha256}"
        return None

    def _erasure_problem(self, key: str, entry: FileEntry, sha256: str) -> str | None:
        if sha256 != entry.sha256:
            return f"the tombstone of {self.driver.uri(key)} names the SHA-256 {sha256}, not {entry.sha256}"
        if self.driver.head(key) is not None:
            return f"{self.driver.uri(key)} is there, but a tombstone says that it was erased"
        return None

    def _fetch(self, manifest: Manifest, folder: Path) -> None:
        try:
            download(self.driver, _content(manifest.digest), manifest, folder)
        except (VerificationFailed, FileNotFoundError) as error:
            tombstones.refuse(self.driver, self.signer, manifest.digest)
            raise self._set_aside(manifest.digest, error) from error

    def _set_aside(self, digest: str, problem: object) -> VerificationFailed:
        """Make a damaged artifact invisible, so that no cache hit returns it, and return the error to raise.

        Its bytes stay; a store that is only read is left as it is.
        """
        if self.read_only:
            return VerificationFailed(f"artifact {digest} is damaged ({problem}); `verify` says more")
        self._verified.forget(digest)
        data = self.driver.get_bytes(_manifest(digest))
        if data is not None:
            self.driver.put_bytes(_quarantine(digest), data)
            self.driver.delete(_manifest(digest))
        return VerificationFailed(
            f"artifact {digest} is damaged and set aside ({problem}); run again to recompute it"
        )


def index_keys(record_id: str, record: Record) -> list[str]:
    """Return the keys of the empty objects that find a record from its content and from its parents."""
    parents = sorted({parent.record for parent in record.parents})
    return [f"made/{record.content}/{record_id}", *(f"used/{parent}/{record_id}" for parent in parents)]


def _hash(pieces: Iterator[bytes]) -> tuple[int, str]:
    found, size = hashlib.sha256(), 0
    for piece in pieces:
        found.update(piece)
        size += len(piece)
    return size, found.hexdigest()


def _content(digest: str) -> str:
    return f"content/{check_digest(digest)}"


def _manifest(digest: str) -> str:
    return f"manifests/{check_digest(digest)}.json"


def _quarantine(digest: str) -> str:
    return f"quarantine/{check_digest(digest)}.json"


def _record(record_id: str) -> str:
    return f"records/{check_digest(record_id, 'record id')}.json"
