"""Resolve a source to exact files, each with its version or checksum, before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import unsafe
from resprout.tasks.core.methods import Registry

Purpose = Literal["model", "encoder", "data"]


@dataclass(frozen=True)
class Context:
    """The places in which sources are looked for. None of it enters a cache key.

    `home` keeps the hashes of local files; `base` is where relative paths begin; `package_roots` are folders
    that `pip install --target` filled; `store` gives s3:// its endpoint and credentials; `tracking_uri` finds
    models:/.
    """

    home: Path
    base: Path
    package_roots: tuple[Path, ...] = ()
    store: StoreConfig = field(default_factory=StoreConfig)
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Files asked of a source: their `purpose`, and whether pickles and Python code are allowed."""

    purpose: Purpose = "data"
    allow_pickle: bool = False
    code: bool = False


@dataclass(frozen=True)
class PinnedFile:
    """A file: `path` in the model or data set, `location` at its source, `identity` that decides its bytes.

    `sha256` is known where the source keeps one; then what is brought is held against it.
    """

    path: str
    size: int
    location: str
    identity: str
    sha256: str | None = None


@dataclass(frozen=True)
class Pinned:
    """A source resolved to exact content: `digest` enters cache keys, `uri` and `identity` the record."""

    uri: str
    scheme: str
    label: str
    files: tuple[PinnedFile, ...]
    identity: Mapping[str, Any]
    digest: str
    licence: str | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


@runtime_checkable
class OnThisMachine(Protocol):
    """A source whose files are used where they lie."""

    def locate(self, address: str, context: Context) -> Path:
        """The file or folder; BadInput where there is none."""
        ...


@runtime_checkable
class Ranged(Protocol):
    """A source of whose files a part can be read without the rest."""

    def head(self, pinned: Pinned, file: PinnedFile, context: Context, size: int) -> bytes | None:
        """The first bytes of a file, at most `size`; None where this one is read as a whole only."""
        ...


class Source(Protocol):
    """A place that models and data come from."""

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        """The exact content behind `address`; BadInput, or Transient when the place cannot be reached."""
        ...

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        """A local file for each pinned path, in `scratch` or where it is already."""
        ...


def files_digest(files: Iterable[PinnedFile]) -> str:
    """SHA-256 over the sorted (path, size, identity) of `files`: equal for equal bytes under equal names."""
    return sha256_hex(canonical_json(sorted([file.path, file.size, file.identity] for file in files)))


_SCHEME = re.compile(r"([a-z][a-z0-9+-]*):/")


def scheme_of(address: str) -> str:
    """The registered scheme of an address; a path has `local`, an unknown scheme raises BadInput."""
    if not address.strip():
        raise BadInput("the source is empty; give a path or an address such as hf://org/name@revision")
    found = _SCHEME.match(address)
    name = found[1] if found else "local"
    return "local" if name == "file" else SOURCES.entry(name).name


def pin(address: str, wanted: Wanted, context: Context) -> Pinned:
    """The source behind `address`, resolved to exact content.

    Raises:
        BadInput: there is no such thing, it is not what is wanted, or access is refused.
        Transient: the place cannot be reached now.
    """
    pinned = _source(scheme_of(address)).pin(address, wanted, context)
    for file in pinned.files:
        # Whatever a server lists becomes a path here.
        if reason := unsafe(file.path):
            raise BadInput(
                f"'{address}' lists the file '{file.path[:200]}', which is no safe path: it {reason}"
            )
    return pinned


def locate(address: str, context: Context) -> Path | None:
    """The path of the source on this machine, None where it is elsewhere; hashes and fetches nothing.

    Raises:
        BadInput: the address is of this machine, and there is no such thing.
    """
    source = _source(scheme_of(address))
    return source.locate(address, context) if isinstance(source, OnThisMachine) else None


def fetch(pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
    """A local file for each path of the pinned source; what is remote is brought into `scratch`."""
    return _source(pinned.scheme).fetch(pinned, context, scratch)


def head(pinned: Pinned, file: PinnedFile, context: Context, size: int) -> bytes | None:
    """The first bytes of a file of the pinned source; None where it can be read as a whole only."""
    source = _source(pinned.scheme)
    return source.head(pinned, file, context, size) if isinstance(source, Ranged) else None


def _source(scheme: str) -> Source:
    return SOURCES.get(scheme)()


SOURCES: Registry[type[Source]] = Registry("source scheme", "resprout.tasks.acquire.sources", separator="-")
"""Kinds of sources of models and data, by the scheme of their address."""
