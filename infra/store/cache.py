"""Local copies of remote artifacts up to a size; the least recently used go first, never one in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.infra.proof.signing import UNSIGNED
from resprout.infra.store import flock
from resprout.infra.store.faults import disk
from resprout.infra.store.manifest import Manifest, hash_file
from resprout.infra.store.verified import NotesKey, VerifiedFiles, stamps
from resprout.infra.store.workdir import private_folder


class LocalCache:
    """Folders `content/<digest>` under `root`; users hold a shared file lock, which the kernel drops."""

    def __init__(self, root: Path, limit_bytes: int, notes: NotesKey | None = None) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._verified = VerifiedFiles(root / "verified", notes or NotesKey(root, UNSIGNED))

    @contextmanager
    def open(self, manifest: Manifest, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """The artifact's local folder; `fetch(folder)` brings and verifies it where it is not here yet.

        Raises:
            StageFailed: the disk is full.
        """
        lock = self.root / "locks" / manifest.digest
        content = self._content(manifest.digest)
        while True:
            with flock.shared(lock):
                if self._is_sound(manifest, content):
                    self._touch(manifest.digest)
                    yield content
                    return
            with flock.exclusive(lock):
                if not self._is_sound(manifest, content):
                    self._bring(manifest, content, fetch)

    def holds(self, digest: str) -> bool:
        """Whether there is a local copy, sound or not."""
        return self._content(digest).is_dir()

    def forget(self, digest: str) -> None:
        """Remove the local copy; waits for those who use it."""
        if self.holds(digest):
            with flock.exclusive(self.root / "locks" / digest):
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
        with disk(self.root, manifest.total_bytes), private_folder(self.root / "tmp") as private:
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
        """Remove what was used longest ago until `coming` bytes fit; what is in use stays in any case."""
        with flock.exclusive(self.root / "evict.lock"):
            sizes = {path.name: _size(path) for path in (self.root / "content").glob("*")}
            total = sum(sizes.values()) + coming
            for digest in sorted(sizes, key=self._last_use):
                if total <= self.limit_bytes:
                    return
                with flock.try_exclusive(self.root / "locks" / digest) as free:
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
