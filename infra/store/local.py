"""Artifacts in a local folder: written aside on the same file system, synced, renamed into place."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.infra.store import flock
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import Head, Versioned
from resprout.infra.store.faults import disk
from resprout.infra.store.manifest import PIECE_BYTES, FileEntry, Manifest, scan
from resprout.infra.store.paths import require_safe, walk
from resprout.infra.store.workdir import private_folder


class LocalDriver:
    """Objects are files under `root`; directories appear as they are needed."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def _path(self, key: str) -> Path:
        return self.root / require_safe(key)

    @contextmanager
    def staged(self, folder: Path, *, move: bool) -> Iterator[Path]:
        found = list(walk(folder))
        with private_folder(self.root / "tmp") as private:
            content = private / "content"
            with disk(self.root, sum(path.stat().st_size for _, path in found)):
                for relative, path in found:
                    target = content / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _bring(path, target, move)
            yield content

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, *, force: bool) -> None:
        destination = self._path(prefix)
        with disk(self.root):
            _seal(folder)
            # Short exclusion: the slow part, copying and hashing, is over unless something is there already.
            with flock.exclusive(self.root / "tmp" / f"{sha256_hex(prefix.encode())}.publish"):
                if destination.exists():
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
        head = self.head(key)
        return head is not None and head.size == entry.size

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing():
            existing = self.get_bytes(key)
            if existing is None:
                self._write(key, data)
            return existing is None or existing == data

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._writing():
            self._write(key, data)

    def get_bytes(self, key: str) -> bytes | None:
        with disk(self.root):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_versioned(self, key: str) -> Versioned | None:
        with disk(self.root):
            try:
                with self._path(key).open("rb") as file:
                    data = file.read()
                    age = time.time() - os.fstat(file.fileno()).st_mtime
            except (FileNotFoundError, NotADirectoryError):
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
        with disk(self.root), self._path(key).open("rb") as file:
            file.seek(start)
            left = length if length is not None else os.fstat(file.fileno()).st_size
            while left > 0 and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece

    def head(self, key: str) -> Head | None:
        with disk(self.root):
            try:
                return Head(self._path(key).stat().st_size, None)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Iterator[str]:
        top = self.root / prefix.rpartition("/")[0]
        if not top.is_dir():
            return
        keys = (path.relative_to(self.root).as_posix() for path in top.rglob("*") if path.is_file())
        yield from sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        with disk(self.root):
            self._path(key).unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        return self._path(key).as_uri()

    def ensure_writable(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise BadInput(f"infra.store.uri is {self.root}, which is a file; give a folder")
        with disk(self.root):
            probe = self.root / "tmp" / f"probe-{uuid.uuid4().hex}"
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with disk(self.root), flock.exclusive(self.root / "tmp" / "objects.lock"):
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


def _bring(path: Path, target: Path, move: bool) -> None:
    if move:
        try:
            os.rename(path, target)
            return
        except OSError:
            # Another file system: what cannot be renamed is copied.
            pass
    shutil.copyfile(path, target)


def _seal(folder: Path) -> None:
    """Files read-only against accidents, and everything on the disk before the rename that shows it."""
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
