"""What a place for artifacts must be able to do; keys are relative POSIX paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resprout.infra.store.manifest import FileEntry, Manifest


@dataclass(frozen=True)
class Head:
    """An object's size, and its SHA-256 where the place keeps one."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Listed:
    """An object in a listing: key, size in bytes, and the seconds since writing by the place's clock.

    `token` is another one after each change; empty where the place shows none.
    """

    key: str
    size: int
    age_seconds: float
    token: str = ""


@dataclass(frozen=True)
class Versioned:
    """Bytes, the token that `replace_if` takes, and the seconds since writing by the place's clock."""

    data: bytes
    token: str
    age_seconds: float


class Driver(Protocol):
    """Objects under keys. Faults: BadInput (access, names), Transient (try again), StageFailed (full)."""

    def staged(self, folder: Path, *, move: bool) -> AbstractContextManager[Path]:
        """The folder to scan and `put_folder`: `folder` or a private copy; `move` may empty `folder`."""
        ...

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, *, force: bool) -> None:
        """Make `prefix` hold exactly the manifest's files; what is there and sound is kept unless `force`."""
        ...

    def folder(self, prefix: str) -> Path | None:
        """The local folder behind `prefix`, or None where content must be downloaded."""
        ...

    def matches(self, key: str, entry: FileEntry) -> bool:
        """Whether `key` is there with the entry's size and, where kept, checksum; reads no content."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless something is there; True when these bytes are there now. One of many writers wins."""
        ...

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write or overwrite, whole or not at all."""
        ...

    def get_bytes(self, key: str) -> bytes | None:
        """The object's bytes, or None."""
        ...

    def read_versioned(self, key: str) -> Versioned | None:
        """The object's bytes with token and age, or None."""
        ...

    def replace_if(self, key: str, data: bytes, token: str) -> bool:
        """Overwrite only what still has `token`; True when these bytes are there now."""
        ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Pieces of the bytes from `start`; FileNotFoundError when there is no such object."""
        ...

    def head(self, key: str) -> Head | None:
        """Size and checksum, or None."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix`, sorted."""
        ...

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Objects whose keys begin with `prefix`, in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when it is not there."""
        ...

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove many objects, in as few requests as the place allows."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below `prefix`/."""
        ...

    def uri(self, key: str) -> str:
        """Address of `key` for other tools."""
        ...

    def ensure_writable(self) -> None:
        """Raise BadInput or Transient with one clear sentence when nothing could be published here."""
        ...
