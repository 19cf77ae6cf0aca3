"""SHA-256 of local files, remembered by path, size, times and inode, so that large ones are read once."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

PIECE_BYTES = 1024 * 1024


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, a megabyte at a time."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


class FileHashes:
    """A small SQLite table under `home`; a file whose size, mtime, ctime or inode changed is hashed again."""

    def __init__(self, home: Path) -> None:
        self._path = home / "file_hashes.db"

    def sha256(self, path: Path) -> str:
        """SHA-256 of the file's bytes as they are now."""
        path = path.resolve()
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=60)) as table, table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)"
            )
            row = table.execute("SELECT stamp, sha256 FROM hashes WHERE path = ?", (str(path),)).fetchone()
        if row is not None and row[0] == str(stamp):
            return str(row[1])
        found = file_sha256(path)
        with closing(sqlite3.connect(self._path, timeout=60)) as table, table:
            table.execute("REPLACE INTO hashes VALUES (?, ?, ?)", (str(path), str(stamp), found))
        return found
