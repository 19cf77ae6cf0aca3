"""Remembered hashes of source files."""

from __future__ import annotations

import os
from pathlib import Path

from resprout.tasks.acquire.hashes import FileHashes, file_sha256


def test_a_file_changed_in_place_with_its_time_put_back_is_hashed_again(tmp_path: Path) -> None:
    path, hashes = tmp_path / "rows.jsonl", FileHashes(tmp_path / "home")
    path.write_text("one row")
    before, first = path.stat(), hashes.sha256(path)
    with path.open("r+") as file:
        file.write("two row")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert hashes.sha256(path) == file_sha256(path) != first
