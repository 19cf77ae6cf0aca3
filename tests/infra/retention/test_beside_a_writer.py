"""gc beside a writer that publishes and relies on what is there: the work is whole, whatever the timing."""

from __future__ import annotations

import random
import threading
import time

import pytest

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.lineage import tree
from resprout.infra.retention.gc import Collector, plan_collection, take_inventory
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.store import ArtifactStore

ROUNDS = 200
PLAIN = StoreConfig()


def keep_collecting(store: ArtifactStore, stop: threading.Event, draw: random.Random) -> None:
    """One gc after the other that holds nothing for needed but what living writers name."""
    while not stop.is_set():
        locks = LeaseLockManager(store.driver)
        inventory = take_inventory(store)
        planned = plan_collection(inventory, Roots(), 0.0)
        time.sleep(draw.random() * 0.01)
        Collector(store, locks, inventory, Roots).run(planned)
        locks.close()


class Writer:
    """What a run does for two stages, the second made from the first."""

    def __init__(self, store: ArtifactStore, draw: random.Random, folder) -> None:
        self.store = store
        self.draw = draw
        self.folder = folder
        self.hits = 0
        self.made = 0

    def stage(self, name: str, before: list[Parent]) -> Parent:
        self.pause()
        key = f"stage-{name}"
        found = self.hit(key)
        if found is not None:
            self.hits += 1
            return found
        self.made += 1
        target = self.folder / name
        target.mkdir(exist_ok=True)
        (target / "out.txt").write_text(name)
        (target / "more.txt").write_text(name * 2)
        digest = self.store.publish(target).digest
        self.pause()
        record = Record(
            stage=name, key=key, kind="text", content=digest, config={}, parents=tuple(before), code={},
            libraries={}, machine={}, who="me", started="2026-01-01T00:00:00+00:00", seconds=1.0,
        )  # fmt: skip
        identity = self.store.put_record(record)
        self.store.driver.put_bytes(f"results/{key}", f"{digest} {identity}".encode())
        return Parent(role="input", digest=digest, record=identity)

    def hit(self, key: str) -> Parent | None:
        """As `results.py` reads: the pin comes before the look."""
        data = self.store.driver.get_bytes(f"results/{key}")
        if data is None:
            return None
        digest, identity = data.decode().split()
        self.store.rely_on(digest)
        if not self.store.has_record(identity) or not self.store.check(digest):
            return None
        return Parent(role="input", digest=digest, record=identity)

    def pause(self) -> None:
        time.sleep(self.draw.random() * 0.01)

    def is_whole(self, made: Parent) -> bool:
        try:
            top = tree(self.store, made.record)
            return all(self.store.verify(node.record.content) == [] for node in top.walk())
        except Exception:
            return False


def play(tmp_path, pinned: bool, rounds: int, config: StoreConfig = PLAIN) -> int:
    """In how many rounds the writer's work was not whole at its end."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    store = ArtifactStore.from_config(config, tmp_path)
    other = ArtifactStore.from_config(config, tmp_path)
    stop, broken = threading.Event(), 0
    failed = []

    def collect() -> None:
        try:
            keep_collecting(other, stop, random.Random(seed + 1))
        except Exception as error:
            failed.append(error)
            raise

    gc = threading.Thread(target=collect)
    gc.start()
    writer = Writer(store, random.Random(seed), tmp_path)
    for _ in range(rounds):
        locks = LeaseLockManager(store.driver)
        store.in_use = InUseReferences(store.driver, locks, poll_seconds=0.002) if pinned else None
        try:
            first = writer.stage("first", [])
            second = writer.stage("second", [first])
            whole = writer.is_whole(second)
        except Exception as error:
            print(error)
            whole = False
        broken += not whole
        if store.in_use is not None:
            store.in_use.close()
        locks.close()
    stop.set()
    gc.join()
    assert failed == []
    print(f"{rounds} rounds, {broken} broken, {writer.made} stages made, {writer.hits} found")
    # Neither side waited for the other to end: some of the work was found, some had been collected.
    assert writer.hits
    assert writer.made > 2
    return broken


@pytest.mark.faults
def test_a_publishing_writer_beside_gc_two_hundred_times(tmp_path):
    assert play(tmp_path, True, ROUNDS) == 0


def test_a_publishing_writer_beside_gc(tmp_path):
    assert play(tmp_path, True, 20) == 0


@pytest.mark.faults
def test_without_pins_the_same_writer_loses_what_it_relies_on(tmp_path):
    assert play(tmp_path, False, ROUNDS) > 0


@pytest.mark.faults
def test_a_publishing_writer_beside_gc_in_a_bucket(tmp_path, s3):
    config = StoreConfig(**s3.settings(f"{tmp_path.name}/store"))
    assert play(tmp_path, True, 30, config=config) == 0
