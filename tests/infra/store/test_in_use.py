"""A living writer's digests are named in the store; references and marks of dead ones block nobody."""

from __future__ import annotations

import threading
import time

import pytest

from resprout.configs.errors import StageFailed, Transient
from resprout.infra.store import in_use
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore


def writers_of(store, digest):
    """The writers that have a reference to a digest, dead or alive."""
    return [key.rpartition("/")[2] for key in store.driver.list(f"pins/{digest}/")]


@pytest.fixture
def locks(store):
    manager = LeaseLockManager(store.driver, term_seconds=1.5, poll_seconds=0.02)
    yield manager
    manager.close()


@pytest.fixture
def writer(store, locks):
    store.in_use = InUseReferences(store.driver, locks, wait_seconds=0.5, poll_seconds=0.02)
    yield store.in_use
    store.in_use.close()


@pytest.fixture
def gc_locks(config, tmp_path):
    """The same locks as another process sees them."""
    manager = LeaseLockManager(ArtifactStore.from_config(config, tmp_path / "gc").driver, term_seconds=1.5)
    yield manager
    manager.close()


def test_what_is_published_is_named_until_the_run_ends(store, writer, folder):
    digest = store.publish(folder).digest
    assert writers_of(store, digest) == [writer.writer]
    writer.close()
    assert list(store.driver.list("pins/")) == []
    assert list(store.driver.list("locks/")) == []


def test_a_second_look_at_a_digest_asks_nothing(store, writer, folder, monkeypatch):
    digest = store.publish(folder).digest
    asked = []
    for name in ("put_bytes", "get_bytes", "read_versioned"):
        real = getattr(store.driver, name)
        monkeypatch.setattr(store.driver, name, lambda *a, real=real: (asked.append(a), real(*a))[1])
    store.rely_on(digest)
    assert asked == []
    store.rely_on("0" * 64)
    # A pin and a look for the mark, which the S3 driver reads with its version.
    assert {one[0] for one in asked} == {f"pins/{'0' * 64}/{writer.writer}", f"gc/{'0' * 64}"}


def test_a_writer_waits_for_a_living_gc(store, writer, gc_locks, folder):
    digest = "1" * 64
    gc_locks.acquire_lock("gc-1", "gc-1")
    assert in_use.mark(store.driver, digest, "gc-1")
    threading.Timer(0.2, lambda: store.driver.delete(in_use.mark_key(digest))).start()
    began = time.monotonic()
    store.rely_on(digest)
    assert time.monotonic() - began > 0.15


def test_a_gc_that_does_not_get_through_is_named(store, writer, gc_locks):
    gc_locks.acquire_lock("gc-1", "gc-1")
    in_use.mark(store.driver, "1" * 64, "gc-1")
    with pytest.raises(Transient, match="see to the process of `resprout gc`"):
        store.rely_on("1" * 64)


def test_the_mark_of_a_dead_gc_is_taken_away_and_its_lease_with_it(store, writer, gc_locks):
    gc_locks.acquire_lock("gc-1", "gc-1", hold_timeout=0.2)
    in_use.mark(store.driver, "1" * 64, "gc-1")
    # Expired by the store's clock, in whole seconds; the heartbeat ends with the hold time.
    time.sleep(2.5)
    store.rely_on("1" * 64)
    assert in_use.mark_owner(store.driver, "1" * 64) is None
    assert not gc_locks.still_held("gc-1")


def test_a_mark_of_nobody_is_taken_away(store, writer):
    in_use.mark(store.driver, "1" * 64, "gc-1")
    store.rely_on("1" * 64)
    assert list(store.driver.list("gc/")) == []


def test_a_second_gc_does_not_mark_what_is_marked(store):
    assert in_use.mark(store.driver, "1" * 64, "gc-1")
    assert not in_use.mark(store.driver, "1" * 64, "gc-2")


def test_who_lost_its_lease_names_all_again_and_says_what_is_gone(store, writer, locks, folder):
    digest = store.publish(folder).digest
    for _ in range(2):
        # What gc does with a writer that it holds for dead: its lease, then its references.
        store.driver.delete_all([*store.driver.list("locks/"), *store.driver.list("pins/")])
        assert not locks.still_held(writer.writer)
        locks._held[writer.writer].good_until = 0.0
        store.confirm()
        assert locks.still_held(writer.writer)
        assert writers_of(store, digest) == [writer.writer]
    store.driver.delete_all([*store.driver.list("locks/"), f"manifests/{digest}.json"])
    locks._held[writer.writer].good_until = 0.0
    with pytest.raises(StageFailed, match="1 artifacts that it relies on were removed"):
        store.confirm()


def test_a_lease_that_ran_out_and_that_nobody_took_is_good_again(store, writer, locks, folder, monkeypatch):
    store.publish(folder)
    monkeypatch.setattr(store, "check", lambda digest: pytest.fail("nothing needs to be looked at"))
    locks._held[writer.writer].good_until = 0.0
    store.confirm()
    assert locks.is_lock_holder(writer.writer, writer.writer)


def test_a_worker_writes_under_the_runs_lease(store, writer, config, tmp_path, folder, gc_locks):
    elsewhere = ArtifactStore.from_config(config, tmp_path / "worker")
    elsewhere.in_use = InUseReferences(elsewhere.driver, gc_locks, writer=writer.writer)
    digest = elsewhere.publish(folder).digest
    assert writers_of(store, digest) == [writer.writer]
    writer.close()
    with pytest.raises(StageFailed, match="the run that this work is for"):
        elsewhere.confirm()
