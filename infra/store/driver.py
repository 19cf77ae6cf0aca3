"""Storage backends: what a driver must be able to do, and which driver serves which scheme of an address.

A backend is one file with a class that has the methods of `Driver`, and one line in `DRIVERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol, cast
from urllib.parse import urlsplit

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.manifest import FileEntry, Manifest

DRIVERS = {
    "file": ("resprout.infra.store.local:LocalDriver", "a folder"),
    "s3": ("resprout.infra.store.s3:S3Driver", "s3://bucket/prefix"),
}
"""By scheme the class of the driver and what its addresses look like; a path without a scheme is a file."""


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
    """Objects under keys, which are relative POSIX paths.

    Faults: BadInput (access, names), Transient (try again), StageFailed (full).
    """

    remote: ClassVar[bool]
    """Whether other machines reach the objects under the same address, and MLflow keeps its files there."""

    @classmethod
    def from_config(cls, config: StoreConfig) -> Driver:
        """Open the place at `config.uri`."""
        ...

    @classmethod
    def mlflow_variables(cls, config: StoreConfig) -> tuple[dict[str, str], dict[str, str]]:
        """Return the variables with which MLflow's own client reaches the place: plain ones, and secrets."""
        ...

    def staged(self, folder: Path, *, move: bool) -> AbstractContextManager[Path]:
        """Return what to scan and `put_folder`: `folder` or a private copy; `move` may empty `folder`."""
        ...

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, *, force: bool) -> None:
        """Make `prefix` hold exactly the manifest's files; sound files that are there stay unless `force`."""
        ...

    def folder(self, prefix: str) -> Path | None:
        """Return the local folder behind `prefix`, or None where content must be downloaded."""
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
        """Return the object's bytes, or None."""
        found = self.read_versioned(key)
        return None if found is None else found.data

    def read_versioned(self, key: str) -> Versioned | None:
        """Return the object's bytes with token and age, or None."""
        ...

    def replace_if(self, key: str, data: bytes, token: str) -> bool:
        """Overwrite only what still has `token`; True when these bytes are there now."""
        ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` in pieces; FileNotFoundError when there is no such object."""
        ...

    def head(self, key: str) -> int | None:
        """Return the size of an object, or None where there is none; reads no content."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""
        ...

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Yield the objects whose keys begin with `prefix`, in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        self.delete_all([key])

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove many objects, in as few requests as the place allows."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below `prefix`/."""
        ...

    def uri(self, key: str) -> str:
        """Return the address of `key` for other tools."""
        ...

    def ensure_writable(self) -> None:
        """Raise BadInput or Transient with one clear sentence when nothing could be published here."""
        ...


def driver_class(uri: str | None, problem: str = "infra.store.uri is '{uri}'") -> type[Driver]:
    """Return the driver of an address, of a folder where there is none; BadInput for an unknown scheme."""
    scheme = urlsplit(uri or "").scheme
    if scheme not in DRIVERS and "://" in (uri or ""):
        known = " or ".join(example for _, example in DRIVERS.values())
        raise BadInput(f"{problem.format(uri=uri)}; give {known}")
    module, _, name = DRIVERS.get(scheme, DRIVERS["file"])[0].partition(":")
    return cast("type[Driver]", getattr(import_module(module), name))


def open_driver(config: StoreConfig, problem: str = "infra.store.uri is '{uri}'") -> Driver:
    """Open the place at `config.uri`; BadInput that begins with `problem` for an unknown scheme."""
    return driver_class(config.uri, problem).from_config(config)
