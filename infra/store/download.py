"""Artifacts from a remote place to a local folder, verified chunk by chunk and whole."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resprout.configs.errors import Transient, VerificationFailed
from resprout.infra.store.driver import Driver
from resprout.infra.store.faults import disk, free_bytes
from resprout.infra.store.manifest import CHUNK_BYTES, PIECE_BYTES, FileEntry, Manifest, hash_file

THREADS = 4
TRIES = 3


def download(
    driver: Driver,
    prefix: str,
    manifest: Manifest,
    target: Path,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """All files of the manifest in `target`; a damaged chunk is fetched again.

    Each byte is hashed once, for the file, while later chunks arrive; only where that hash is wrong are the
    chunks' own looked at.

    Raises:
        VerificationFailed: the stored bytes are not those of the manifest.
        Transient: the place cannot be reached, or the link damages what it brings.
    """
    with disk(target, manifest.total_bytes):
        _require_room(target, manifest.total_bytes)
        for entry in manifest.files:
            path = target / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(entry.size)
            key = f"{prefix}/{entry.path}"
            # Chunk hashes are not part of the digest, so what counts is the hash of the whole file.
            if _bring(driver, key, entry, path, on_bytes) == entry.sha256:
                continue
            for index in range(len(entry.chunks)):
                _mend(driver, key, entry, index, path)
            if hash_file(path, entry.path).sha256 != entry.sha256:
                raise VerificationFailed(f"{driver.uri(key)} does not have the SHA-256 {entry.sha256}")


def _bring(
    driver: Driver, key: str, entry: FileEntry, path: Path, on_bytes: Callable[[int], None] | None
) -> str:
    """Fetch all chunks of a file, several at a time, and return the SHA-256 of what came."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool, path.open("rb") as file:
        jobs = [pool.submit(_fetch, driver, key, entry, i, path) for i in range(len(entry.chunks))]
        try:
            for job in jobs:
                left = done = job.result()
                while left and (piece := file.read(min(PIECE_BYTES, left))):
                    whole.update(piece)
                    left -= len(piece)
                if on_bytes:
                    on_bytes(done)
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


def _require_room(target: Path, need: int) -> None:
    if free_bytes(target) < need:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
