"""Which checkpoints a gc deletes: those of finished stages and old ones, none of a stage that is at work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from many import artifact
from resprout.infra.retention.gc import take_inventory
from resprout.infra.retention.stale_checkpoints import drop_checkpoints, stale_checkpoints
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

KEY = f"recover-{'a' * 64}"


def save(store: ArtifactStore, key: str = KEY) -> int:
    """A checkpoint of a stage; all bytes that it takes."""
    with store.workdir() as folder:
        (folder / "place.json").write_text('{"step": 7}')
        StageCheckpoints(store, key, lambda: None).save(folder, 7)
    return sum(entry.size for entry in store.driver.entries(f"checkpoints/{key}/"))


def test_of_an_unfinished_stage_they_stay_until_they_are_old(
    store: ArtifactStore, root: Path, locks: LeaseLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = save(store)
    assert stale_checkpoints(store, locks, keep_days=14.0) == {}
    later = time.time() + 15 * 86400.0
    monkeypatch.setattr(time, "time", lambda: later)
    assert stale_checkpoints(store, locks, keep_days=16.0) == {}
    stale = stale_checkpoints(store, locks, keep_days=14.0)
    assert stale == {KEY: size}
    assert drop_checkpoints(store, locks, stale) == stale
    assert list(store.driver.list("checkpoints/")) == []
    assert not os.listdir(root / "checkpoints")


def test_of_a_finished_stage_they_go_at_once(
    store: ArtifactStore, root: Path, locks: LeaseLockManager
) -> None:
    made = artifact(root, "recover", "done", ())
    key = store.get_record(made.record).key
    size = save(store, key)
    save(store)
    assert stale_checkpoints(store, locks, keep_days=14.0) == {key: size}
    # An artifact that is damaged is made again, so its checkpoints count again.
    (content,) = store.driver.list(f"content/{made.digest}/")
    store.driver.delete(content)
    assert stale_checkpoints(store, locks, keep_days=14.0) == {}


def test_a_stage_that_is_at_work_keeps_them(store: ArtifactStore, locks: LeaseLockManager) -> None:
    save(store)
    others = LeaseLockManager(store.driver)
    stale = stale_checkpoints(store, locks, keep_days=0.0)
    assert set(stale) == {KEY}
    assert others.acquire_lock(KEY, "a run", acquire_timeout=0)
    try:
        assert stale_checkpoints(store, locks, keep_days=0.0) == {}
        assert drop_checkpoints(store, locks, stale) == {}
    finally:
        others.close()
    assert len(list(store.driver.list(f"checkpoints/{KEY}/"))) == 2
    assert drop_checkpoints(store, locks, stale) == stale


def test_what_no_store_wrote_there_is_left_alone(store: ArtifactStore, locks: LeaseLockManager) -> None:
    save(store)
    stray = f"checkpoints/{KEY}/notes.txt"
    store.driver.put_bytes(stray, b"who wrote this?")
    assert take_inventory(store).strays == [stray]
