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
from resprout.infra.store.manifest import CHUNK_BYTES, FileEntry, Manifest, hash_file

THREADS = 4
TRIES = 3


def download(
    driver: Driver,
    prefix: str,
    manifest: Manifest,
    target: Path,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """All files of the manifest in `target`; a damaged chunk is fetched again, then VerificationFailed."""
    with disk(target, manifest.total_bytes):
        _require_room(target, manifest.total_bytes)
        for entry in manifest.files:
            path = target / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(entry.size)
            key = f"{prefix}/{entry.path}"
            with ThreadPoolExecutor(THREADS) as pool:
                jobs = [pool.submit(_chunk, driver, key, entry, i, path) for i in range(len(entry.chunks))]
                try:
                    for job in jobs:
                        done = job.result()
                        if on_bytes:
                            on_bytes(done)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            # Chunk hashes are not part of the digest, so what counts is the hash of the whole file.
            if hash_file(path, entry.path).sha256 != entry.sha256:
                raise VerificationFailed(f"{driver.uri(key)} does not have the SHA-256 {entry.sha256}")


def _chunk(driver: Driver, key: str, entry: FileEntry, index: int, path: Path) -> int:
    """Bring one chunk and return its length.

    Raises:
        VerificationFailed: the same wrong bytes came each time, so it is the object that is damaged.
        Transient: they differ, so it is the link.
    """
    start = index * CHUNK_BYTES
    length = min(CHUNK_BYTES, entry.size - start)
    came: list[tuple[int, str]] = []
    for attempt in range(TRIES):
        found = hashlib.sha256()
        got = 0
        with path.open("r+b") as file:
            file.seek(start)
            try:
                for piece in driver.read(key, start, length):
                    found.update(piece)
                    got += len(piece)
                    file.write(piece)
            except FileNotFoundError as error:
                raise VerificationFailed(f"{driver.uri(key)} is no longer there") from error
            except Transient:
                if attempt == TRIES - 1:
                    raise
                continue
        if got == length and found.hexdigest() == entry.chunks[index]:
            return length
        came.append((got, found.hexdigest()))
    kind = VerificationFailed if len(came) == TRIES and len(set(came)) == 1 else Transient
    raise kind(
        f"bytes {start} to {start + length} of {driver.uri(key)} do not have the hash of the manifest "
        f"({came[-1][0]} of {length} bytes came, {TRIES} times)"
    )


def _require_room(target: Path, need: int) -> None:
    if free_bytes(target) < need:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
