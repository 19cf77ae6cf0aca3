"""In-use references: what living writers rely on, so that `resprout gc` deletes none of it.

A writer is a run. It names each digest before it looks whether the artifact is there:

1. it writes the reference `pins/<digest>/<writer>`; `<writer>` is a lease that it holds (`lease.py`);
2. it looks for the mark `gc/<digest>`, and waits until there is none;
3. only then it reads the manifest, and either relies on the artifact or publishes it.

gc goes the other way round for each digest that no one needs: it writes the mark, looks for living references
(and for records and versions that came since it planned), and only then deletes: manifest first, content,
records, and the mark last. Where it finds a reference it removes the mark and leaves the artifact.

This is Dekker's argument: each side writes before it looks, and the store answers a read that begins after a
write with that write. So of two that come at once at least one sees the other. Where only gc sees, it leaves
the artifact; where only the writer sees, it waits and then finds the artifact removed, and makes it; where
both see, gc leaves it and the writer waits for no longer than that.

Death on either side: a reference counts while its writer's lease is alive, a mark while gc's is. Whoever
disregards a dead one first takes its lease over. That is a conditional write, which the other heartbeat
finds if it was only paused: it has lost then, and knows.

- A writer asks at the end of each publication whether it still has its lease (`confirm`). If that was taken
  over while it was paused, it takes it again, names everything again and looks whether all is still there.
- gc asks the store for its lease right before each delete. What remains is a gc that is stopped between that
  answer and the delete, for longer than a lease lasts, and then goes on. A store has no delete that depends
  on a lease, so this is not excluded but bounded: at most the objects of one artifact go, the one that was
  marked before; they are missing then, which every reader sees, and never wrong.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from resprout.configs.errors import ResproutError, StageFailed, Transient
from resprout.infra.store import keys
from resprout.infra.store.canonical import canonical_json, check_digest
from resprout.infra.store.driver import Driver
from resprout.infra.store.stored_json import parse_json

if TYPE_CHECKING:
    from resprout.infra.store.lease import LeaseLockManager

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0
"""How long a writer waits for a gc that is deleting what it is about to rely on."""
NOBODY = "gc-nobody"


class InUseReferences:
    """The digests that one run relies on; its lease begins with the first of them.

    A worker elsewhere that makes a part of the run is given its `writer`, and so has no lease of its own.
    """

    def __init__(
        self,
        driver: Driver,
        locks: LeaseLockManager,
        wait_seconds: float = WAIT_SECONDS,
        poll_seconds: float = 0.1,
        stop: Callable[[], None] = lambda: None,
        writer: str = "",
    ) -> None:
        self._driver = driver
        self._locks = locks
        self._wait = wait_seconds
        self._poll = poll_seconds
        self._stop = stop
        self._mutex = threading.Lock()
        self._own = not writer
        self._writer = writer
        self._held: set[str] = set()
        self._written: set[str] = set()

    @property
    def writer(self) -> str:
        """The lease under which the references count."""
        with self._mutex:
            if not self._writer:
                self._writer = f"writer-{uuid.uuid4().hex}"
                self._locks.acquire_lock(self._writer, self._writer, acquire_timeout=0)
            return self._writer

    def hold(self, digest: str) -> None:
        """Name a digest, and wait while gc deletes it; costs two requests the first time, none later.

        Raises:
            Transient: gc did not get through in time.
        """
        if digest in self._held:
            return
        reference = _reference(digest, self.writer)
        self._written.add(reference)
        self._driver.put_bytes(reference, b"")
        self._pass_mark(digest)
        self._held.add(digest)

    def confirm(self, is_whole: Callable[[str], bool]) -> None:
        """Check that the references have counted all the time; asks no server while the lease is good.

        Raises:
            StageFailed: the process was paused for longer than its lease, and what it relies on was removed.
        """
        writer = self._writer
        if not writer or self._locks.is_lock_holder(writer, writer):
            return
        if not self._own:
            raise StageFailed(
                f"the run that this work is for no longer holds its lease {writer}, so nothing keeps gc from "
                "what is made here; run again"
            )
        # Who disregards a reference takes the lease over first. While no one has, all have counted.
        if self._locks.renew(writer):
            return
        logger.warning("this process was away for longer than its lease; it looks whether all is still there")
        if not self._locks.acquire_lock(writer, writer, acquire_timeout=self._wait):
            raise StageFailed(f"this process does not get its lease {writer} back; run again")
        relied, self._held = sorted(self._held), set()
        for digest in relied:
            self.hold(digest)
        removed = [digest for digest in relied if not is_whole(digest)]
        if removed:
            raise StageFailed(
                f"this process was paused for longer than its lease, and {len(removed)} artifacts that it "
                f"relies on were removed meanwhile ({removed[0]}); run again: they are made again"
            )

    def close(self) -> None:
        """Remove all references and end the lease; what cannot be reached is left for gc."""
        with self._mutex:
            written, self._written, self._held = sorted(self._written), set(), set()
            writer, self._writer = self._writer, ""
        if not writer:
            return
        try:
            self._driver.delete_all(written)
            self._locks.retire(writer, writer)
        except ResproutError as error:
            logger.warning("the references of this run are left for gc: %s", error)

    def _pass_mark(self, digest: str) -> None:
        end = time.monotonic() + self._wait
        while (owner := mark_owner(self._driver, digest)) is not None:
            if clear_dead_mark(self._driver, self._locks, digest, owner):
                continue
            if time.monotonic() >= end:
                raise Transient(
                    f"gc has been at artifact {digest} for {self._wait:.0f} s, and this run needs it; see to "
                    "the process of `resprout gc`, or end it: its mark goes with it"
                )
            self._stop()
            time.sleep(self._poll)


def references(driver: Driver, is_alive: Callable[[str], bool]) -> tuple[set[str], list[str]]:
    """Return the digests that living writers rely on, and the keys of the references of dead ones."""
    alive = functools.cache(is_alive)
    living, dead = set(), []
    for digest, writer in keys.own(driver, "pins"):
        if alive(writer):
            living.add(digest)
        else:
            dead.append(_reference(digest, writer))
    return living, dead


def _reference(digest: str, writer: str) -> str:
    return f"pins/{check_digest(digest)}/{writer}"


def mark_key(digest: str) -> str:
    """Return the key of gc's mark on a digest."""
    return f"gc/{check_digest(digest)}"


def mark_owner(driver: Driver, digest: str) -> str | None:
    """Return the lease of the gc that is deleting a digest, None where there is none."""
    data = driver.get_bytes(mark_key(digest))
    try:
        return None if data is None else str(parse_json(data, "the mark")["gc"])
    except (ValueError, KeyError, TypeError):
        # No gc wrote this. No one holds a lease of that name, so the mark counts as one of a dead gc.
        return NOBODY


def mark(driver: Driver, digest: str, owner: str) -> bool:
    """Write the mark; False where another gc has marked the digest."""
    return driver.put_if_absent(mark_key(digest), canonical_json({"gc": owner}))


def clear_dead_mark(driver: Driver, locks: LeaseLockManager, digest: str, owner: str) -> bool:
    """Remove the mark of a gc that died; False while it lives.

    Its lease is taken over first, so that it deletes nothing more should it only have been paused.
    """
    me = uuid.uuid4().hex
    if not locks.acquire_lock(owner, me, acquire_timeout=0):
        return False
    try:
        # Another writer may have been faster, and another gc may have marked it again.
        if mark_owner(driver, digest) == owner and locks.still_held(owner):
            driver.delete(mark_key(digest))
    finally:
        locks.retire(owner, me)
    return True
