"""A gc that is killed at any point stands in nobody's way, and the next one goes on from there."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from many import build
from resprout.infra.retention.gc import Collector, plan_collection, take_inventory
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager

KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from resprout.configs.infrastructure import StoreConfig
    from resprout.infra.retention.gc import Collector
    from resprout.infra.retention.gc import take_inventory
    from resprout.infra.retention.gc_roots import Roots
    from resprout.infra.retention.gc import plan_collection
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.store import ArtifactStore
    store, left = ArtifactStore.from_config(StoreConfig(), Path(sys.argv[1])), int(sys.argv[2])
    for name in ("delete_all", "delete_folder"):
        def counted(keys, real=getattr(store.driver, name)):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(keys)
        setattr(store.driver, name, counted)
    inventory = take_inventory(store)
    planned = plan_collection(inventory, Roots(), 0.0)
    Collector(store, LeaseLockManager(store.driver), inventory, Roots).run(planned)
""")


@pytest.mark.faults
@pytest.mark.parametrize("deletes", [1, 2, 3, 4, 7, 20])
def test_after_a_kill_a_writer_goes_on_at_once_and_the_next_gc_ends_the_work(
    store, root, home, locks, deletes
):
    runs = build(root, 20)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(home), str(deletes)], check=False)
    assert killed.returncode == -signal.SIGKILL
    marks = list(store.driver.list("gc/"))
    assert marks
    # The artifact that it was at, and one that it had marked only.
    store.in_use = InUseReferences(store.driver, locks)
    began = time.monotonic()
    for made in (runs[0][-1], runs[0][0]):
        work = home / made.stage
        work.mkdir()
        (work / "out.txt").write_text(f"run 0 {made.stage}")
        assert store.publish(work).digest == made.digest
        assert store.check(made.digest)
        assert store.verify(made.digest) == []
    assert time.monotonic() - began < 5
    assert len(list(store.driver.list("gc/"))) == len(marks) - 2
    others = LeaseLockManager(store.driver)
    inventory = take_inventory(store)
    collector = Collector(store, others, inventory, Roots)
    collector.run(plan_collection(inventory, Roots(), 0.0))
    others.close()
    assert all(store.check(made.digest) for made in (runs[0][-1], runs[0][0]))
    store.in_use.close()
    inventory = take_inventory(store)
    Collector(store, locks, inventory, Roots).run(plan_collection(inventory, Roots(), 0.0))
    left = {key for key in store.driver.list("") if not key.startswith("tmp/")}
    assert left == set()
