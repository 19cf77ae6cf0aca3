from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from resprout.configs.errors import BadInput, StageFailed, Transient
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.lease import LeaseLockManager, claim
from resprout.infra.store.store import ArtifactStore

HOLDER = textwrap.dedent("""
    import json, sys, time
    from pathlib import Path
    from resprout.configs.infrastructure import StoreConfig
    from resprout.infra.store import lease
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.store import ArtifactStore
    if sys.argv[3] == "elsewhere":
        lease.system = lambda: "another machine"
    store = ArtifactStore.from_config(StoreConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]))
    locks = LeaseLockManager(store.driver, term_seconds=float(sys.argv[4]))
    assert locks.acquire_lock("key", "other")
    print("held", flush=True)
    time.sleep(60)
""")


@pytest.fixture
def plain(config):
    data = config.model_dump()
    for name in ("access_key_id", "secret_access_key"):
        data[name] = data[name] and data[name].get_secret_value()
    return json.dumps(data)


@pytest.fixture
def locks(store):
    manager = LeaseLockManager(store.driver, term_seconds=1.5, poll_seconds=0.05)
    yield manager
    manager.close()


@pytest.fixture
def others(config, tmp_path):
    """The same locks as another process sees them."""
    driver = ArtifactStore.from_config(config, tmp_path / "other").driver
    manager = LeaseLockManager(driver, term_seconds=1.5, poll_seconds=0.05)
    yield manager
    manager.close()


def test_a_lock_has_one_holder_until_it_is_released(locks, others):
    assert not locks.is_locked("key")
    assert locks.acquire_lock("key", "me")
    assert locks.acquire_lock("key", "me")
    assert not locks.acquire_lock("key", "somebody", acquire_timeout=0)
    assert not others.acquire_lock("key", "you", acquire_timeout=0.1)
    for view in (locks, others):
        assert view.is_locked("key")
        assert view.is_lock_holder("key", "me")
        assert not view.is_lock_holder("key", "you")
        assert not view.wait_for_lock("key", timeout=0.1)
    locks.release_lock("key", "me")
    assert not others.is_locked("key")
    assert not others.is_lock_holder("key", "me")
    assert others.wait_for_lock("key", timeout=0.1)
    assert others.acquire_lock("key", "you", acquire_timeout=0)


def test_keys_do_not_disturb_each_other(locks, others):
    assert locks.acquire_lock("a/b", "me")
    assert others.acquire_lock("../c", "you", acquire_timeout=0)


def test_releasing_what_is_not_held_is_an_error(locks):
    with pytest.raises(ValueError, match="holds no lock"):
        locks.release_lock("key", "me")
    locks.acquire_lock("key", "me")
    with pytest.raises(ValueError, match="'you' holds no lock"):
        locks.release_lock("key", "you")


def test_of_many_who_want_it_one_gets_it(config, tmp_path):
    barrier = threading.Barrier(8)

    def acquire(index):
        mine = LeaseLockManager(ArtifactStore.from_config(config, tmp_path / str(index)).driver, 30.0)
        barrier.wait()
        won = mine.acquire_lock("key", f"holder {index}", acquire_timeout=0)
        barrier.wait()
        mine.close()
        return won

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(acquire, range(8))) == 1


def test_every_holder_has_a_higher_fencing_token(locks, others):
    fences = []
    for round_ in range(2):
        for view in (locks, others):
            assert view.acquire_lock("key", f"{round_}", acquire_timeout=1)
            fences.append(view.fence("key"))
            view.release_lock("key", f"{round_}")
    assert fences == [1, 2, 3, 4]


def test_the_heartbeat_keeps_it_beyond_its_term(locks, others):
    locks.acquire_lock("key", "me")
    time.sleep(3.5)
    assert locks.is_lock_holder("key", "me")
    assert locks.still_held("key")
    assert not others.acquire_lock("key", "you", acquire_timeout=0)
    locks.release_lock("key", "me")


@contextmanager
def holding(plain, home, where, term):
    """Another process that holds the lock on "key"; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, plain, str(home), where, str(term)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_lock_of_a_process_killed_elsewhere_is_taken_over_when_it_expires(plain, locks, tmp_path):
    with holding(plain, tmp_path / "killed", "elsewhere", 1.5):
        assert not locks.acquire_lock("key", "me", acquire_timeout=0)
    killed = time.monotonic()
    assert not locks.acquire_lock("key", "me", acquire_timeout=0)
    assert locks.acquire_lock("key", "me", acquire_timeout=10)
    assert time.monotonic() - killed < 5
    assert locks.fence("key") == 2


def test_a_lock_of_a_process_killed_on_this_machine_is_free_at_once(plain, locks, tmp_path):
    with holding(plain, tmp_path / "killed", "here", 600):
        assert not locks.acquire_lock("key", "me", acquire_timeout=0)
    assert locks.acquire_lock("key", "me", acquire_timeout=0)
    assert locks.fence("key") == 2


def test_who_was_taken_over_may_not_publish(locks, others, store, folder):
    locks.acquire_lock("key", "me")
    # What a machine that slept through its term looks like: no heartbeat, and time has passed.
    locks._renew = lambda lease: None
    assert others.acquire_lock("key", "you", acquire_timeout=10)
    assert not locks.still_held("key")
    assert others.still_held("key")
    with pytest.raises(StageFailed, match="lost its lease on 'key'"):
        store.publish(folder, locks.guard("key"))
    assert list(store.driver.list("manifests/")) == []
    assert store.check(store.publish(folder, others.guard("key")).digest)
    locks.release_lock("key", "me")
    assert others.still_held("key")


def test_who_ran_out_and_was_not_taken_over_publishes(locks, others, store, folder):
    locks.acquire_lock("key", "me")
    # A machine that was suspended: the term is over, and the heartbeat has not come round yet.
    renew, locks._renew = locks._renew, lambda lease: None
    for _ in range(100):
        if not locks.still_held("key"):
            break
        time.sleep(0.1)
    assert not locks.still_held("key")
    locks._renew = renew
    digest = store.publish(folder, locks.guard("key")).digest
    assert store.check(digest)
    assert not others.acquire_lock("key", "you", acquire_timeout=0)


def test_a_clock_that_is_set_kills_no_holder(locks, others, monkeypatch):
    import psutil

    locks.acquire_lock("key", "me")
    boot = psutil.boot_time()
    # psutil dates a process by the boot, whose date moves with the clock.
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 106)
    assert not others.acquire_lock("key", "you", acquire_timeout=0)
    assert locks.still_held("key")


def test_a_hold_timeout_ends_the_lock(locks, others):
    locks.acquire_lock("key", "me", hold_timeout=0.5)
    assert not others.acquire_lock("key", "you", acquire_timeout=0)
    assert others.acquire_lock("key", "you", acquire_timeout=5)
    assert not locks.is_lock_holder("key", "me")


@pytest.mark.parametrize("error", [Transient("busy"), StageFailed("disk full"), BadInput("who are you")])
def test_a_failing_store_does_not_end_the_heartbeat(locks, caplog, error):
    locks.acquire_lock("key", "me")
    original, failed = locks._driver.replace_if, []

    def fail(*arguments):
        if len(failed) < 2:
            failed.append(1)
            raise error
        return original(*arguments)

    locks._driver.replace_if = fail
    time.sleep(2.5)
    assert len(failed) == 2
    assert locks.still_held("key")
    assert caplog.text.count("trying again") == 1, "said once, not at each try"


def test_a_renewal_whose_answer_was_lost_is_still_ours(locks):
    locks.acquire_lock("key", "me")
    lease = locks._held["key"]
    original, lost = locks._driver.read_versioned, []

    def lose(key):
        if not lost:
            lost.append(1)
            raise Transient("cut")
        return original(key)

    locks._driver.read_versioned = lose
    with pytest.raises(Transient):
        locks._renew(lease)
    locks._renew(lease)
    assert not lease.lost
    assert locks.still_held("key")
    locks.release_lock("key", "me")
    assert not locks.is_locked("key")


def test_closing_frees_what_is_held(locks, others):
    locks.acquire_lock("a", "me")
    locks.acquire_lock("b", "me")
    locks.close()
    assert not others.is_locked("a")
    assert others.acquire_lock("b", "you", acquire_timeout=0)


def test_closing_on_a_full_disk_hides_no_other_error(locks, others, caplog):
    locks.acquire_lock("a", "me")
    original = locks._driver.replace_if

    def full(*arguments):
        raise StageFailed("disk full")

    locks._driver.replace_if = full
    locks.close()
    locks._driver.replace_if = original
    assert "will expire: disk full" in caplog.text
    assert others.acquire_lock("a", "you", acquire_timeout=5)


def test_garbage_in_the_place_of_a_lock_is_replaced(locks, store):
    store.driver.put_bytes(f"locks/{sha256_hex(b'key')}.json", b"garbage")
    assert not locks.is_locked("key")
    assert locks.acquire_lock("key", "me", acquire_timeout=0)


def test_the_asynchronous_side(locks, others):
    async def play():
        assert await locks.aacquire_lock("key", "me")
        assert not await others.aacquire_lock("key", "you", acquire_timeout=0.1)
        assert not await others.await_for_lock("key", timeout=0.1)
        locks.release_lock("key", "me")
        assert await others.await_for_lock("key", timeout=1)
        assert await others.aacquire_lock("key", "you", acquire_timeout=0)

    asyncio.run(play())


def test_a_long_wait_is_told_once_and_a_short_one_not(locks, config, tmp_path, monkeypatch):
    monkeypatch.setattr("resprout.infra.store.lease.SILENT_SECONDS", 0.3)
    told = []
    driver = ArtifactStore.from_config(config, tmp_path / "other").driver
    waiter = LeaseLockManager(driver, poll_seconds=0.05, waiting=told.append)
    assert locks.acquire_lock("prune-key", "me")
    began = time.monotonic()
    assert not waiter.acquire_lock("prune-key", "you", acquire_timeout=0.1)
    assert told == []
    assert not waiter.acquire_lock("prune-key", "you", acquire_timeout=1.0)
    assert told == ["prune-key"]
    assert not asyncio.run(waiter.aacquire_lock("prune-key", "you", acquire_timeout=1.0))
    assert told == ["prune-key"] * 2
    # Three waits: 0.1, 1 and 1 s.
    assert 2.1 <= waiter.waited_seconds <= time.monotonic() - began
    assert locks.waited_seconds == 0
    before = waiter.waited_seconds
    threading.Timer(1.0, locks.release_lock, ("prune-key", "me")).start()
    assert waiter.acquire_lock("prune-key", "you", acquire_timeout=20)
    assert waiter.waited_seconds > before
    waiter.close()


def test_ctrl_c_ends_every_wait(locks, config, tmp_path):
    pressed = threading.Event()

    def stop():
        if pressed.is_set():
            raise KeyboardInterrupt

    driver = ArtifactStore.from_config(config, tmp_path / "other").driver
    waiter = LeaseLockManager(driver, poll_seconds=0.05, stop=stop)
    assert locks.acquire_lock("key", "me")
    waits = (
        lambda: waiter.acquire_lock("key", "you"),
        lambda: asyncio.run(waiter.aacquire_lock("key", "you")),
        lambda: waiter.wait_for_lock("key"),
        lambda: asyncio.run(waiter.await_for_lock("key")),
    )
    for wait in waits:
        pressed.clear()
        timer = threading.Timer(0.3, pressed.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            wait()
        assert 0.2 < time.monotonic() - began < 5
        timer.join()
    assert waiter.acquire_lock("free", "you"), "who need not wait is not asked"
    waiter.close()


def test_one_of_many_gets_a_claim_and_keeps_it(store) -> None:
    said: dict[str, str] = {}

    def ask(owner: str) -> None:
        said[owner] = claim(store.driver, "rule chat model-7", owner)

    threads = [threading.Thread(target=ask, args=(f"run-{index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 8
    (winner,) = set(said.values())
    assert winner in said
    assert claim(store.driver, "rule chat model-7", winner) == winner
    assert claim(store.driver, "rule chat model-8", "run-9") == "run-9"
