"""What every place for artifacts must do, on a local folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed
from resprout.infra.store.manifest import CHUNK_BYTES, scan
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.store import ArtifactStore


def record(**changes):
    data = {
        "stage": "prune", "key": "k", "kind": "model", "content": "0" * 64, "config": {"ratio": 0.9},
        "parents": (Parent(role="model", digest="1" * 64, record="2" * 64),), "code": {"hash": "c"},
        "libraries": {"torch": "2"}, "machine": {"cpu": "x"}, "who": "me", "started": "2026-01-01T00:00:00Z",
        "seconds": 1.5,
    }  # fmt: skip
    return Record(**{**data, **changes})


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(store: ArtifactStore, digest: str, path: str, data: bytes | None) -> None:
    """Change an object behind the store's back."""
    key = f"content/{digest}/{path}"
    local = store.driver.folder(key)
    if local is not None:
        local.unlink()
    if data is None:
        if local is None:
            store.driver.delete(key)
    elif local is not None:
        local.write_bytes(data)
    else:
        store.driver.client.put_object(Bucket=store.driver.bucket, Key=store.driver._key(key), Body=data)


def test_what_is_published_is_opened_unchanged(store, folder):
    expected = read_all(folder)
    manifest = store.publish(folder)
    assert [entry.path for entry in manifest.files] == ["a.txt", "sub/b.bin"]
    assert manifest.total_bytes == 5 + 4096
    assert store.check(manifest.digest)
    assert store.verify(manifest.digest) == []
    assert store.manifest(manifest.digest) == manifest
    assert read_all(folder) == expected
    for _ in range(2):
        with store.open(manifest.digest) as opened:
            assert read_all(opened) == expected
            assert all(path.stat().st_mode & 0o222 == 0 for path in opened.rglob("*") if path.is_file())


def test_one_small_file_is_read_and_checked(store, folder):
    digest = store.publish(folder).digest
    assert store.read(digest, "a.txt") == b"hello"
    for path in ("b.txt", "../a.txt", "sub"):
        with pytest.raises(BadInput, match="has no file"):
            store.read(digest, path)
    damage(store, digest, "a.txt", b"hellO")
    with pytest.raises(VerificationFailed, match="missing or changed"):
        store.read(digest, "a.txt")


def test_the_uri_ends_in_the_content_folder(store, folder, config):
    digest = store.publish(folder).digest
    assert store.uri(digest).endswith(f"/store/content/{digest}")
    assert store.uri(digest).split("://")[0] in ("file", "s3")


def test_moving_takes_the_files_away(store):
    with store.workdir() as work:
        (work / "x").write_bytes(b"x")
        digest = store.publish(work, move=True).digest
        with store.open(digest) as opened:
            assert read_all(opened) == {"x": b"x"}
    assert not work.exists()


def test_sixteen_publishers_of_the_same_content_leave_one_copy(store, folder, config, tmp_path):
    barrier = threading.Barrier(16)

    def publish(index: int) -> str:
        mine = ArtifactStore.from_config(config, tmp_path / f"home{index % 4}")
        barrier.wait()
        return mine.publish(folder).digest

    with ThreadPoolExecutor(16) as pool:
        digests = set(pool.map(publish, range(16)))
    assert len(digests) == 1
    digest = digests.pop()
    assert store.verify(digest) == []
    assert list(store.driver.list("content/")) == [f"content/{digest}/a.txt", f"content/{digest}/sub/b.bin"]
    assert list(store.driver.list("manifests/")) == [f"manifests/{digest}.json"]
    assert [key for key in store.driver.list("tmp/") if "work-" in key] == []


def test_a_reader_never_sees_half_an_artifact(store, folder, config, home):
    seen = []
    other = folder.parent / "other"
    other.mkdir()
    for index in range(8):
        (other / f"{index}").write_bytes(bytes([index]) * 100_000)
    coming = scan(other).digest
    stop = threading.Event()

    def read() -> None:
        reader = ArtifactStore.from_config(config, home.parent / "reader")
        while not stop.is_set():
            if reader.check(coming):
                with reader.open(coming) as opened:
                    seen.append(len(read_all(opened)))

    thread = threading.Thread(target=read)
    thread.start()
    store.publish(other)
    time.sleep(0.5)
    stop.set()
    thread.join()
    assert seen
    assert set(seen) == {8}


def test_nothing_is_visible_when_the_guard_refuses(store, folder):
    def guard() -> None:
        raise StageFailed("the lease was lost")

    with pytest.raises(StageFailed, match="lease"):
        store.publish(folder, guard)
    assert list(store.driver.list("manifests/")) == []
    assert store.check(store.publish(folder).digest)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (b"hellO", "was changed"),
        (b"hell", "has 4 bytes instead of 5"),
        (None, "is missing"),
    ],
)
def test_damage_is_found_set_aside_and_healed(store, folder, config, tmp_path, change, sentence):
    digest = store.publish(folder).digest
    damage(store, digest, "a.txt", change)
    problems = store.verify(digest)
    assert len(problems) == 1
    assert sentence in problems[0]
    fresh = ArtifactStore.from_config(config, tmp_path / "another-machine")
    with pytest.raises(VerificationFailed, match="damaged and set aside"), fresh.open(digest):
        pass
    assert not fresh.check(digest)
    assert store.publish(folder).digest == digest
    with fresh.open(digest) as opened:
        assert (opened / "a.txt").read_bytes() == b"hello"
    assert store.verify(digest) == []


def test_damage_stays_in_place_where_the_store_is_only_read(store, folder, config, tmp_path):
    digest = store.publish(folder).digest
    damage(store, digest, "a.txt", b"hellO")
    problems, keys = store.verify(digest), sorted(store.driver.list(""))
    fresh = ArtifactStore.from_config(config, tmp_path / "another-machine")
    fresh.read_only = True
    for _ in range(2):
        with pytest.raises(VerificationFailed, match="is damaged"), fresh.open(digest):
            pass
    assert sorted(store.driver.list("")) == keys
    assert store.verify(digest) == problems != []


def test_the_machine_that_published_sees_later_damage_too(store, folder):
    digest = store.publish(folder).digest
    damage(store, digest, "a.txt", b"hellO")
    with pytest.raises(VerificationFailed), store.open(digest):
        pass


def test_an_added_file_is_reported(store, folder):
    digest = store.publish(folder).digest
    store.driver.put_bytes(f"content/{digest}/evil.py", b"import os")
    assert len(store.verify(digest)) == 1
    assert "evil.py was added" in store.verify(digest)[0]


@pytest.mark.parametrize(
    ("beside", "note", "allowed"),
    [
        ("MLmodel", b"model_name: small\nmodel_version: '1'\n", True),
        ("other", b"model_name: small\nmodel_version: '1'\n", False),
        ("MLmodel", b"import os\n", False),
        ("MLmodel", b"model_name: " + 2000 * b"x", False),
    ],
)
def test_what_mlflow_notes_when_it_loads_a_version_is_no_damage(store, folder, beside, note, allowed):
    (folder / "sub" / beside).write_text("flavors: {}")
    digest = store.publish(folder).digest
    store.driver.put_bytes(f"content/{digest}/sub/registered_model_meta", note)
    assert (store.verify(digest) == []) == allowed


def test_check_sees_a_missing_or_shorter_file_without_reading_it(store, folder):
    digest = store.publish(folder).digest
    damage(store, digest, "a.txt", b"hell")
    assert not store.check(digest)
    store.publish(folder)
    assert store.check(digest)
    damage(store, digest, "sub/b.bin", None)
    assert not store.check(digest)
    store.publish(folder)
    assert store.check(digest)


def test_a_damaged_manifest_is_no_artifact_and_is_healed(store, folder):
    digest = store.publish(folder).digest
    store.driver.put_bytes(f"manifests/{digest}.json", b'{"digest": ')
    assert not store.check(digest)
    with pytest.raises(VerificationFailed, match="damaged"):
        store.manifest(digest)
    store.publish(folder)
    assert store.check(digest)


@pytest.mark.parametrize("digest", ["../../etc", "0" * 63, "Z" * 64, ""])
def test_what_is_no_digest_is_refused(store, digest):
    for call in (store.manifest, store.check, store.verify, store.uri, store.get_record):
        with pytest.raises(BadInput, match="64 lower-case"):
            call(digest)


def test_an_unknown_digest_is_said_to_be_unknown(store):
    assert not store.check("0" * 64)
    with pytest.raises(BadInput, match="there is no artifact 000"):
        store.manifest("0" * 64)
    with pytest.raises(BadInput, match="there is no record 000"):
        store.get_record("0" * 64)


def test_keys_do_not_leave_the_store(store):
    for key in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(BadInput):
            store.driver.put_bytes(key, b"x")


def test_records_are_kept_under_the_hash_of_their_json(store):
    first, second = record(), record(seconds=2.5)
    ids = {store.put_record(first), store.put_record(second), store.put_record(first)}
    assert ids == {hashlib.sha256(first.dumps()).hexdigest(), hashlib.sha256(second.dumps()).hexdigest()}
    assert store.get_record(first.id) == first
    assert store.has_record(first.id)
    assert not store.has_record("0" * 64)
    assert dict(store.records()) == {first.id: first, second.id: second}
    store.driver.put_bytes(f"records/{first.id}.json", second.dumps())
    with pytest.raises(VerificationFailed, match="changed"):
        store.get_record(first.id)


def test_one_of_many_conditional_writers_wins(store):
    barrier = threading.Barrier(8)

    def write(index: int) -> bool:
        barrier.wait()
        return store.driver.put_if_absent("locks/x", b"%d" % index)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1
    token = store.driver.read_versioned("locks/x").token

    def replace(index: int) -> bool:
        barrier.wait()
        return store.driver.replace_if("locks/x", b"next %d" % index, token)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(replace, range(8))) == 1
    assert not store.driver.replace_if("locks/absent", b"x", token)


def test_equal_bytes_count_as_written(store):
    assert store.driver.put_if_absent("manifests/x", b"same")
    assert store.driver.put_if_absent("manifests/x", b"same")
    assert not store.driver.put_if_absent("manifests/x", b"other")
    assert store.driver.get_bytes("manifests/x") == b"same"


def test_ranges_are_read(store):
    store.driver.put_bytes("x", bytes(range(100)))
    assert b"".join(store.driver.read("x", 10, 5)) == bytes(range(10, 15))
    assert b"".join(store.driver.read("x", 90)) == bytes(range(90, 100))
    assert b"".join(store.driver.read("x", 10, 0)) == b""
    with pytest.raises(FileNotFoundError):
        list(store.driver.read("absent"))


def test_a_file_of_several_chunks_goes_there_and_back(store, tmp_path):
    made = tmp_path / "large"
    made.mkdir()
    block = os.urandom(1 << 20)
    with (made / "model.safetensors").open("wb") as file:
        for index in range(20):
            file.write(bytes([index]) + block[1:])
    (made / "empty").touch()
    manifest = store.publish(made)
    assert len(manifest.files[1].chunks) == 2 == -(-(20 << 20) // CHUNK_BYTES)
    assert store.check(manifest.digest)
    with store.open(manifest.digest) as opened:
        assert (opened / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
        assert (opened / "empty").read_bytes() == b""


def test_a_store_that_works_is_writable_and_has_room(store):
    store.ensure_writable()
    assert store.free_bytes() > 0


def test_a_listing_tells_sizes_and_ages(store):
    store.driver.put_bytes("room/a", b"")
    store.driver.put_bytes("room/sub/b", b"four")
    store.driver.put_bytes("roomy", b"x")
    found = {entry.key: entry for entry in store.driver.entries("room/")}
    assert {key: entry.size for key, entry in found.items()} == {"room/a": 0, "room/sub/b": 4}
    assert all(0 <= entry.age_seconds < 10 for entry in found.values())
    assert list(store.driver.list("room")) == ["room/a", "room/sub/b", "roomy"]
    assert list(store.driver.entries("nothing/here/")) == []


def test_a_file_that_was_written_long_before_it_was_published_is_young(store, folder):
    if store.driver.folder("content") is None:
        pytest.skip("a bucket knows only when an object came")
    os.utime(folder / "a.txt", (1_000_000_000, 1_000_000_000))
    digest = store.publish(folder, move=True).digest
    assert all(entry.age_seconds < 60 for entry in store.driver.entries(f"content/{digest}/"))


def test_many_objects_and_whole_folders_are_deleted(store, folder):
    digest = store.publish(folder).digest
    store.driver.put_bytes(f"content/{digest}0/other", b"x")
    store.driver.delete_folder(f"content/{digest}")
    assert list(store.driver.list("content/")) == [f"content/{digest}0/other"]
    store.driver.delete_folder(f"content/{digest}")
    for name in ("a", "b/c", "b/d"):
        store.driver.put_bytes(f"pins/{name}", b"")
    store.driver.delete_all(["pins/a", "pins/b/c", "pins/never/was"])
    assert list(store.driver.list("pins/")) == ["pins/b/d"]
    store.driver.delete("pins/b/d")
    local = store.driver.folder("pins")
    assert local is None or list(local.iterdir()) == []
    with pytest.raises(BadInput):
        store.driver.delete_all(["../outside"])
