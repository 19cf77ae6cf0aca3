"""Local copies of artifacts: download, memory of which files were hashed, and a cache with a size limit."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from resprout.configs.errors import Transient, VerificationFailed
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.driver import Driver
from resprout.infra.store.filesystem import (
    disk_errors,
    exclusive_lock,
    free_bytes,
    plain_status,
    private_folder,
    shared_lock,
    try_exclusive_lock,
)
from resprout.infra.store.manifest import CHUNK_BYTES, PIECE_BYTES, FileEntry, Manifest, hash_file
from resprout.infra.store.signing import UNSIGNED, Signer
from resprout.infra.store.stored_json import parse_json

THREADS = 4
TRIES = 3


def download(driver: Driver, prefix: str, manifest: Manifest, target: Path) -> None:
    """Bring all files of the manifest to `target`; a damaged chunk is fetched again.

    Each byte is hashed once, for the file, while later chunks arrive; only where that hash is wrong are the
    chunks' own looked at.

    Raises:
        VerificationFailed: the stored bytes are not those of the manifest.
        Transient: the place cannot be reached, or the link damages what it brings.
    """
    with disk_errors(target, manifest.total_bytes):
        if free_bytes(target) < manifest.total_bytes:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        for entry in manifest.files:
            path = target / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(entry.size)
            key = f"{prefix}/{entry.path}"
            # Chunk hashes are not part of the digest, so what counts is the hash of the whole file.
            if _bring(driver, key, entry, path) == entry.sha256:
                continue
            for index in range(len(entry.chunks)):
                _mend(driver, key, entry, index, path)
            if hash_file(path, entry.path).sha256 != entry.sha256:
                raise VerificationFailed(f"{driver.uri(key)} does not have the SHA-256 {entry.sha256}")


def _bring(driver: Driver, key: str, entry: FileEntry, path: Path) -> str:
    """Fetch all chunks of a file, several at a time, and return the SHA-256 of what came."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool, path.open("rb") as file:
        jobs = [pool.submit(_fetch, driver, key, entry, i, path) for i in range(len(entry.chunks))]
        try:
            for job in jobs:
                left = job.result()
                while left and (piece := file.read(min(PIECE_BYTES, left))):
                    whole.update(piece)
                    left -= len(piece)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return whole.hexdigest()


def _fetch(driver: Driver, key: str, entry: FileEntry, index: int, path: Path) -> int:
    """Write one chunk into the file and return its length; a body that is cut is fetched again."""
    start = index * CHUNK_BYTES
    length = min(CHUNK_BYTES, entry.size - start)
    for left in reversed(range(TRIES)):
        with path.open("r+b") as file:
            file.seek(start)
            try:
                for piece in driver.read(key, start, length):
                    file.write(piece)
            except FileNotFoundError as error:
                raise VerificationFailed(f"{driver.uri(key)} is no longer there") from error
            except Transient:
                if not left:
                    raise
                continue
            if file.tell() == start + length:
                break
    return length


def _mend(driver: Driver, key: str, entry: FileEntry, index: int, path: Path) -> None:
    """Fetch one chunk until it has the hash of the manifest.

    Raises:
        VerificationFailed: the same wrong bytes came each time, so it is the object that is damaged.
        Transient: they differ, so it is the link.
    """
    came = []
    for attempt in range(TRIES):
        if attempt:
            _fetch(driver, key, entry, index, path)
        with path.open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            came.append(hashlib.sha256(file.read(CHUNK_BYTES)).hexdigest())
        if came[-1] == entry.chunks[index]:
            return
    kind = VerificationFailed if len(set(came)) == 1 else Transient
    raise kind(
        f"chunk {index} of {driver.uri(key)} does not have the hash of the manifest ({TRIES} times, with "
        f"{len(set(came))} different results)"
    )


NOTES = "application/vnd.resprout.verified+json"
"""Payload type under which the signing key makes the key of the notes."""
PRIVATE = 0o600

Stamps = dict[str, list[int]]


def stamps(content: Path, manifest: Manifest) -> Stamps | None:
    """Return size, mtime, ctime and inode of each file; None when one is missing, or is a link."""
    found: Stamps = {}
    for entry in manifest.files:
        try:
            status = plain_status(content.parent, f"{content.name}/{entry.path}")
        except (FileNotFoundError, VerificationFailed):
            return None
        found[entry.path] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


class NotesKey:
    """The key that authenticates the notes of a machine.

    It comes from the signing key; without one it is a random file that no one but this user can read or make.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self._path = folder / "key"
        self._signer = signer

    @cached_property
    def value(self) -> bytes:
        """The key, 32 bytes; created where there is none yet."""
        # Ed25519 signs the same bytes the same way each time, and this signature is shown to no one.
        signature = self._signer.signature(NOTES, b"")
        if signature is not None:
            return hashlib.sha256(signature).digest()
        own = self._own()
        if own is None:
            self._path.unlink(missing_ok=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_name(f"key.{uuid.uuid4().hex}")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
                file.write(secrets.token_bytes(32))
            # Of several processes one is first, and the others take its key.
            with suppress(FileExistsError):
                os.link(aside, self._path)
            aside.unlink()
            own = self._own() or secrets.token_bytes(32)
        return own

    def of(self, data: bytes) -> str:
        """Return the authentication code of a note."""
        return hmac.new(self.value, data, hashlib.sha256).hexdigest()

    def is_there(self) -> bool:
        """Whether there is a key already, so that some note can count."""
        return self._signer.signs or self._own() is not None

    def _own(self) -> bytes | None:
        """Read the key in the file; None where it is missing, or another user could have made or read it."""
        try:
            status = plain_status(self._path.parent, self._path.name)
        except (FileNotFoundError, VerificationFailed):
            return None
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            return None
        data = self._path.read_bytes()
        return data if len(data) == 32 else None


class VerifiedFiles:
    """One small JSON for each artifact, kept beside the content and never in it."""

    def __init__(self, folder: Path, key: NotesKey) -> None:
        self.folder = folder
        self._key = key

    def holds(self, digest: str, now: Stamps | None) -> bool:
        """Whether the files still are what they were when their hashes were found right."""
        if now is None or not self._key.is_there():
            return False
        try:
            plain_status(self.folder, f"{digest}.json")
            known = parse_json((self.folder / f"{digest}.json").read_bytes(), "the note")
        except (FileNotFoundError, VerificationFailed, ValueError):
            return False
        return bool(known == self._note(digest, now))

    def remember(self, digest: str, then: Stamps | None) -> None:
        """Note that the files with these stamps, taken before they were hashed, are right."""
        if then is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{digest}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(self._note(digest, then), sort_keys=True))
        os.replace(aside, self.folder / f"{digest}.json")

    def forget(self, digest: str) -> None:
        (self.folder / f"{digest}.json").unlink(missing_ok=True)

    def _note(self, digest: str, files: Stamps) -> dict[str, Any]:
        return {"files": files, "mac": self._key.of(canonical_json([digest, files]))}


class LocalCache:
    """Folders `content/<digest>` under `root`; users hold a shared file lock, which the kernel drops."""

    def __init__(self, root: Path, limit_bytes: int, notes: NotesKey | None = None) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._verified = VerifiedFiles(root / "verified", notes or NotesKey(root, UNSIGNED))

    @contextmanager
    def open(self, manifest: Manifest, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """Open the artifact's local folder; `fetch(folder)` brings and verifies it where it is not here yet.

        Raises:
            StageFailed: the disk is full.
        """
        lock = self.root / "locks" / manifest.digest
        content = self._content(manifest.digest)
        while True:
            with shared_lock(lock):
                if self._is_sound(manifest, content):
                    self._touch(manifest.digest)
                    yield content
                    return
            with exclusive_lock(lock):
                if not self._is_sound(manifest, content):
                    self._bring(manifest, content, fetch)

    def holds(self, digest: str) -> bool:
        """Whether there is a local copy, sound or not."""
        return self._content(digest).is_dir()

    def forget(self, digest: str) -> None:
        """Remove the local copy; waits for those who use it."""
        if self.holds(digest):
            with exclusive_lock(self.root / "locks" / digest):
                self._drop(digest)

    def _content(self, digest: str) -> Path:
        return self.root / "content" / digest

    def _is_sound(self, manifest: Manifest, content: Path) -> bool:
        now = stamps(content, manifest)
        if self._verified.holds(manifest.digest, now):
            return True
        right = now is not None and all(
            hash_file(content / entry.path, entry.path).sha256 == entry.sha256 for entry in manifest.files
        )
        if right:
            self._verified.remember(manifest.digest, now)
        return right

    def _bring(self, manifest: Manifest, content: Path, fetch: Callable[[Path], None]) -> None:
        with disk_errors(self.root, manifest.total_bytes), private_folder(self.root / "tmp") as private:
            self._drop(manifest.digest)
            self.evict(manifest.total_bytes)
            arriving = private / "content"
            arriving.mkdir()
            fetch(arriving)
            for entry in manifest.files:
                (arriving / entry.path).chmod(0o444)
            content.parent.mkdir(parents=True, exist_ok=True)
            os.rename(arriving, content)
            # fetch hashed every file, and a rename of the folder changes none of their stamps.
            self._verified.remember(manifest.digest, stamps(content, manifest))
            self._touch(manifest.digest)

    def evict(self, coming: int = 0) -> None:
        """Remove the least recently used until `coming` bytes fit; an artifact in use always stays."""
        with exclusive_lock(self.root / "evict.lock"):
            sizes = {path.name: _size(path) for path in (self.root / "content").glob("*")}
            total = sum(sizes.values()) + coming
            for digest in sorted(sizes, key=self._last_use):
                if total <= self.limit_bytes:
                    return
                with try_exclusive_lock(self.root / "locks" / digest) as free:
                    if free:
                        self._drop(digest)
                        total -= sizes[digest]

    def _drop(self, digest: str) -> None:
        self._verified.forget(digest)
        shutil.rmtree(self._content(digest), ignore_errors=True)

    def _touch(self, digest: str) -> None:
        used = self.root / "used" / digest
        used.parent.mkdir(parents=True, exist_ok=True)
        used.touch()

    def _last_use(self, digest: str) -> float:
        try:
            return (self.root / "used" / digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
