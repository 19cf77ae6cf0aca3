from __future__ import annotations

import hashlib
import json
import os

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.manifest import CHUNK_BYTES, Manifest, hash_file, scan


def test_digest_is_the_hash_of_the_sorted_path_size_and_sha256(folder):
    listed = [
        ["a.txt", 5, hashlib.sha256(b"hello").hexdigest()],
        ["sub/b.bin", 4096, hashlib.sha256(bytes(range(256)) * 16).hexdigest()],
    ]
    expected = hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()
    assert scan(folder).digest == expected


def test_times_and_modes_are_not_part_of_the_digest_but_names_are(folder):
    before = scan(folder).digest
    os.utime(folder / "a.txt", (1, 1))
    (folder / "a.txt").chmod(0o400)
    assert scan(folder).digest == before
    (folder / "a.txt").rename(folder / "c.txt")
    assert scan(folder).digest != before


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_chunk_hashes_are_those_of_16_mb_slices(tmp_path, size):
    data = os.urandom(1024) * (size // 1024 + 1)
    path = tmp_path / "file"
    path.write_bytes(data[:size])
    entry = hash_file(path, "file")
    slices = [data[:size][i : i + CHUNK_BYTES] for i in range(0, size, CHUNK_BYTES)]
    assert entry.size == size
    assert entry.sha256 == hashlib.sha256(data[:size]).hexdigest()
    assert list(entry.chunks) == [hashlib.sha256(piece).hexdigest() for piece in slices]


def test_links_devices_and_empty_folders_are_refused(folder, tmp_path):
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="link"):
        scan(folder)
    (folder / "link").unlink()
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="link"):
        scan(folder)
    (folder / "up").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadInput, match="device"):
        scan(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no file"):
        scan(tmp_path / "empty")


@pytest.mark.parametrize(
    "path", ["../a", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\\b", "C:/a", "a/."]
)
def test_a_manifest_with_an_unsafe_path_is_refused(path):
    entry = {"path": path, "size": 0, "sha256": hashlib.sha256(b"").hexdigest(), "chunks": []}
    listed = json.dumps([[path, 0, entry["sha256"]]], separators=(",", ":")).encode()
    digest = hashlib.sha256(listed).hexdigest()
    data = json.dumps({"schema_version": 1, "digest": digest, "files": [entry]}).encode()
    with pytest.raises(VerificationFailed, match="path"):
        Manifest.loads(data, digest)


def test_a_manifest_that_was_edited_is_refused(folder):
    manifest = scan(folder)
    edited = json.loads(manifest.dumps())
    edited["files"][0]["size"] = 6
    with pytest.raises(VerificationFailed, match="digest is not that"):
        Manifest.loads(json.dumps(edited).encode(), manifest.digest)
    with pytest.raises(VerificationFailed, match="is that of"):
        Manifest.loads(manifest.dumps(), "0" * 64)
