"""Artifacts in a local folder: written aside on the same file system, synced, renamed into place."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import Driver, Listed, Versioned
from resprout.infra.store.filesystem import (
    disk_errors,
    exclusive_lock,
    plain_status,
    private_folder,
    require_no_links,
    require_safe,
    walk,
)
from resprout.infra.store.manifest import PIECE_BYTES, FileEntry, Manifest, scan


class LocalDriver(Driver):
    """Objects are files under `root`; directories appear as they are needed."""

    remote: ClassVar[bool] = False

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @classmethod
    def from_config(cls, config: StoreConfig) -> LocalDriver:
        parts = urlsplit(config.uri or "")
        return cls(Path(unquote(parts.path) if parts.scheme == "file" else config.uri or "").expanduser())

    @classmethod
    def mlflow_variables(cls, config: StoreConfig) -> tuple[dict[str, str], dict[str, str]]:
        return {}, {}

    def _path(self, key: str) -> Path:
        """The file of an object; VerificationFailed where a folder on the way to it is a link."""
        require_no_links(self.root, require_safe(key).rpartition("/")[0])
        return self.root / key

    def _open(self, key: str) -> BinaryIO:
        """The object's file, opened to read; FileNotFoundError or VerificationFailed as in `plain_status`."""
        plain_status(self.root, require_safe(key))
        # Without a wait for someone at the other end, should it have become a pipe since.
        return open(self.root / key, "rb", opener=_open_plain)

    @contextmanager
    def staged(self, folder: Path, *, move: bool) -> Iterator[Path]:
        found = list(walk(folder))
        with private_folder(self.root / "tmp") as private:
            content = private / "content"
            with disk_errors(self.root, sum(path.stat().st_size for _, path in found)):
                for relative, path in found:
                    target = content / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (shutil.move if move else shutil.copyfile)(path, target)
            yield content

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, *, force: bool) -> None:
        destination = self._path(prefix)
        with disk_errors(self.root):
            _seal(folder)
            # Short exclusion: the slow part, copying and hashing, is over unless something is there already.
            with exclusive_lock(self.root / "tmp" / f"{sha256_hex(prefix.encode())}.publish"):
                if os.path.lexists(destination):
                    if not force and _holds(destination, manifest):
                        return
                    old = folder.parent / "replaced"
                    os.rename(destination, old)
                destination.parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder, destination)
                _sync(destination.parent)

    def folder(self, prefix: str) -> Path | None:
        return self._path(prefix)

    def matches(self, key: str, entry: FileEntry) -> bool:
        try:
            return self.head(key) == entry.size
        except VerificationFailed:
            # What is no plain file holds nothing that was published.
            return False

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing():
            existing = self.get_bytes(key)
            if existing is None:
                self._write(key, data)
            return existing is None or existing == data

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._writing():
            self._write(key, data)

    def read_versioned(self, key: str) -> Versioned | None:
        with disk_errors(self.root):
            try:
                with self._open(key) as file:
                    data = file.read()
                    age = time.time() - os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:
                return None
        return Versioned(data, sha256_hex(data), age)

    def replace_if(self, key: str, data: bytes, token: str) -> bool:
        with self._writing():
            existing = self.get_bytes(key)
            if existing is None or sha256_hex(existing) != token:
                return False
            self._write(key, data)
            return True

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with disk_errors(self.root), self._open(key) as file:
            file.seek(start)
            left = length if length is not None else os.fstat(file.fileno()).st_size
            while left > 0 and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece

    def head(self, key: str) -> int | None:
        with disk_errors(self.root):
            try:
                return plain_status(self.root, require_safe(key)).st_size
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[str]:
        yield from sorted(entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Listed]:
        now = time.time()
        folder = prefix.rpartition("/")[0]
        require_no_links(self.root, folder)
        with disk_errors(self.root):
            for path, status in _files(self.root / folder):
                key = path[len(str(self.root)) + 1 :]
                if key.startswith(prefix):
                    # A file that was moved here keeps the time at which it was written; its status does not.
                    age = now - max(status.st_mtime, status.st_ctime)
                    token = f"{status.st_ino}-{status.st_mtime_ns}"
                    yield Listed(key, status.st_size, max(0.0, age), token)

    def delete_all(self, keys: Iterable[str]) -> None:
        with self._writing():
            for key in keys:
                path = self._path(key)
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                    self._prune(path.parent)

    def delete_folder(self, prefix: str) -> None:
        folder = self._path(prefix)
        with private_folder(self.root / "tmp") as private, disk_errors(self.root):
            lock = self.root / "tmp" / f"{sha256_hex(prefix.encode())}.publish"
            with exclusive_lock(lock), suppress(FileNotFoundError):
                os.rename(folder, private / "gone")
                _sync(folder.parent)

    def _prune(self, folder: Path) -> None:
        """Remove a folder that holds nothing more, and those above it, but none at the top."""
        with suppress(OSError):
            while len(folder.relative_to(self.root).parts) > 1:
                folder.rmdir()
                folder = folder.parent

    def uri(self, key: str) -> str:
        return (self.root / require_safe(key)).as_uri()

    def ensure_writable(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise BadInput(f"infra.store.uri is {self.root}, which is a file; give a folder")
        with disk_errors(self.root):
            probe = self.root / "tmp" / f"probe-{uuid.uuid4().hex}"
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with disk_errors(self.root), exclusive_lock(self.root / "tmp" / "objects.lock"):
            yield

    def _write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.root / "tmp" / f"object-{uuid.uuid4().hex}"
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        _sync(path.parent)


def _files(folder: Path | str) -> Iterator[tuple[str, os.stat_result]]:
    """Each file below a folder; what is deleted meanwhile is left out."""
    try:
        found = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                with suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _seal(folder: Path) -> None:
    """Make files read-only against accidents, and sync everything before the rename that shows it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            _sync(file)
            file.chmod(0o444)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(folder: Path, manifest: Manifest) -> bool:
    try:
        return scan(folder).digest == manifest.digest
    except BadInput:
        return False
