"""The manifest of an artifact: its files with their sizes and hashes, and the digest over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import unsafe, walk

CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk with a hash of its own, and of a part of a multipart upload."""

PIECE_BYTES = 2**18
THREADS = 4
SCHEMA_VERSION = 1


class FileEntry(BaseModel):
    """A file: POSIX path, size in bytes, SHA-256, and the SHA-256 of each 16 MB chunk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str
    chunks: tuple[str, ...]

    @model_validator(mode="after")
    def _is_sound(self) -> FileEntry:
        if reason := unsafe(self.path):
            raise ValueError(f"path '{self.path[:200]}' {reason}")
        if self.size < 0 or len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise ValueError(f"'{self.path}' has {self.size} bytes but {len(self.chunks)} chunk hashes")
        return self


class Manifest(BaseModel):
    """The files of an artifact, sorted by path; `digest` covers their paths, sizes and SHA-256 alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    digest: str
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _is_sound(self) -> Manifest:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema version {self.schema_version} is not {SCHEMA_VERSION}")
        paths = [entry.path for entry in self.files]
        if not paths or paths != sorted(set(paths)):
            raise ValueError("the files are none, repeated or not sorted by path")
        if self.digest != content_digest(self.files):
            raise ValueError("the digest is not that of the listed files")
        return self

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def dumps(self) -> bytes:
        """Canonical JSON, equal for equal content."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> str:
        """SHA-256 of its bytes, which the digest does not cover: it leaves out the hashes of chunks."""
        return sha256_hex(self.dumps())

    @classmethod
    def loads(cls, data: bytes, digest: str) -> Manifest:
        """Read the manifest of `digest`; VerificationFailed when it is damaged or another's."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise VerificationFailed(f"the manifest of artifact {digest} is damaged: {reason}") from error
        if manifest.digest != digest:
            raise VerificationFailed(f"the manifest kept for artifact {digest} is that of {manifest.digest}")
        return manifest


def content_digest(files: Iterable[FileEntry]) -> str:
    """Return the SHA-256 over the sorted (path, size, SHA-256) of `files`."""
    return sha256_hex(canonical_json(sorted([entry.path, entry.size, entry.sha256] for entry in files)))


def hash_file(path: Path, name: str) -> FileEntry:
    """Return the entry of one file under `name`."""
    with path.open("rb") as file:
        return hash_stream(file, name)


def hash_stream(file: BinaryIO, name: str) -> FileEntry:
    """Return the entry of what a file holds under `name`; reads it once, in pieces."""
    whole = hashlib.sha256()
    chunks: list[str] = []
    size = 0
    while True:
        chunk = hashlib.sha256()
        filled = 0
        while filled < CHUNK_BYTES and (piece := file.read(min(PIECE_BYTES, CHUNK_BYTES - filled))):
            whole.update(piece)
            chunk.update(piece)
            filled += len(piece)
        if filled:
            size += filled
            chunks.append(chunk.hexdigest())
        if filled < CHUNK_BYTES:
            break
    return FileEntry(path=name, size=size, sha256=whole.hexdigest(), chunks=tuple(chunks))


def scan(folder: Path) -> Manifest:
    """Hash the files under `folder`; BadInput for an empty folder, links or unsafe names."""
    found = sorted(walk(folder))
    if not found:
        raise BadInput(f"{folder} holds no file; an artifact needs at least one")
    with ThreadPoolExecutor(THREADS) as pool:
        files = tuple(pool.map(lambda item: hash_file(item[1], item[0]), found))
    return Manifest(digest=content_digest(files), files=files)
