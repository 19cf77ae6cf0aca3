"""Locks across machines: leases in the store that expire soon after their process dies; claims."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prefect.locking.protocol import LockManager

from resprout.configs.errors import ResproutError, StageFailed
from resprout.infra.process_identity import start_ticks, system
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.driver import Driver, Versioned
from resprout.infra.store.stored_json import DamagedJson, parse_json

logger = logging.getLogger(__name__)

# Places report the age of an object in whole seconds.
CLOCK_STEP_SECONDS = 1.0
SILENT_SECONDS = 3.0
"""A wait that is longer is reported."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, as the store's clock does."""


@dataclass
class Lease:
    """A lock that this process holds: `fence` grows with each holder, `nonce` is this one's alone."""

    key: str
    holder: str
    fence: int
    nonce: str
    until: float | None
    renewals: int = 0
    token: str = ""
    good_until: float = field(default=0.0)
    lost: bool = False


class LeaseLockManager(LockManager):
    """Exactly one holder of a key across machines; a holder that dies loses it.

    The next on the same machine sees the death at once, others `term_seconds` after the last renewal.

    Each lock is an object under `locks/` that is only written conditionally. Its age is taken from the
    store's clock, so the clocks of the machines need not agree. A released lock stays as a small object,
    which keeps `fence` growing. `waiting` is called with the key, once in a wait that takes long; `stop` at
    each try, and what it raises ends the wait.
    """

    def __init__(
        self,
        driver: Driver,
        term_seconds: float = 30.0,
        poll_seconds: float = 0.25,
        waiting: Callable[[str], None] = lambda key: None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver = driver
        self._term = term_seconds
        self._poll = poll_seconds
        self._waiting = waiting
        self._stop_wait = stop
        self.waited_seconds = 0.0
        """How long this process has waited for others."""
        self._held: dict[str, Lease] = {}
        self._mutex = threading.RLock()
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        for pause in self._pauses(key, acquire_timeout):
            time.sleep(pause)
            if self._try(key, holder, hold_timeout):
                return True
        return False

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        for pause in self._pauses(key, acquire_timeout):
            await asyncio.sleep(pause)
            if await asyncio.to_thread(self._try, key, holder, hold_timeout):
                return True
        return False

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        for pause in self._pauses(key, timeout):
            time.sleep(pause)
            if not self.is_locked(key):
                return True
        return False

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        for pause in self._pauses(key, timeout):
            await asyncio.sleep(pause)
            if not await asyncio.to_thread(self.is_locked, key):
                return True
        return False

    def _pauses(self, key: str, timeout: float | None) -> Iterator[float]:
        """Yield the seconds before each try of a wait: none before the first, until `timeout` is over."""
        began, silent = time.monotonic(), True
        yield 0.0
        try:
            while timeout is None or time.monotonic() < began + timeout:
                self._stop_wait()
                if silent and time.monotonic() - began >= SILENT_SECONDS:
                    silent = False
                    self._waiting(key)
                yield self._poll
        finally:
            # Whoever is first at once never comes here.
            self.waited_seconds += time.monotonic() - began

    def release_lock(self, key: str, holder: str) -> None:
        """Free the key for the next holder; ValueError when `holder` never had it from this process."""
        with self._mutex:
            lease = self._give_up(key, holder)
            body = {"key": key, "fence": lease.fence, "nonce": lease.nonce, "released": True}
            data = canonical_json(body)
            if lease.lost or not (
                self._driver.replace_if(_name(key), data, lease.token)
                or (self._adopt(lease) and self._driver.replace_if(_name(key), data, lease.token))
            ):
                logger.warning("the lock on %s had passed to another process before it was released", key)

    def retire(self, key: str, holder: str) -> None:
        """Free a key that no one will ask for again, and leave no object behind."""
        with self._mutex:
            if not self._give_up(key, holder).lost:
                self._driver.delete(_name(key))

    def _give_up(self, key: str, holder: str) -> Lease:
        lease = self._held.get(key)
        if lease is None or lease.holder != holder:
            raise ValueError(f"'{holder}' holds no lock on '{key}'")
        return self._held.pop(key)

    def is_locked(self, key: str) -> bool:
        current = self._driver.read_versioned(_name(key))
        return current is not None and not _is_free(current)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        with self._mutex:
            lease = self._held.get(key)
            if lease is not None:
                return lease.holder == holder and not lease.lost and _now() < lease.good_until
        current = self._driver.read_versioned(_name(key))
        return current is not None and not _is_free(current) and _body(current).get("holder") == holder

    def renew(self, key: str) -> bool:
        """Make a lease that may have run out good for another term; False where another took it over."""
        with self._mutex:
            lease = self._held.get(key)
        if lease is None:
            return False
        self._renew(lease)
        return self.is_lock_holder(key, lease.holder)

    def still_held(self, key: str) -> bool:
        """Whether the store itself says that this process holds the key now; asks the store."""
        with self._mutex:
            lease = self._held.get(key)
            if lease is None or lease.lost:
                return False
            nonce = lease.nonce
        current = self._driver.read_versioned(_name(key))
        return current is not None and not _is_free(current) and _body(current).get("nonce") == nonce

    def guard(self, key: str) -> Callable[[], None]:
        """A check for `ArtifactStore.publish` that raises StageFailed when the key is no longer held.

        A lease that ran out while the machine was suspended is renewed, unless another took it over.
        """

        def check() -> None:
            if not (self.still_held(key) or self.renew(key)):
                raise StageFailed(
                    f"this process lost its lease on '{key}', so it may not publish; another process has "
                    "taken the stage over: run again to use that result"
                )

        return check

    def fence(self, key: str) -> int:
        """The fencing token under which this process holds the key; KeyError when it does not."""
        with self._mutex:
            return self._held[key].fence

    def close(self) -> None:
        """End the heartbeat and free every lock that is still held; for the end of a process."""
        self._stop.set()
        with self._mutex:
            held = [(lease.key, lease.holder) for lease in self._held.values()]
        for key, holder in held:
            try:
                self.release_lock(key, holder)
            except ResproutError as error:
                logger.warning("the lock on %s was not released and will expire: %s", key, error)

    def _try(self, key: str, holder: str, hold_seconds: float | None) -> bool:
        with self._mutex:
            mine = self._held.get(key)
            if mine is not None and not mine.lost:
                return mine.holder == holder
            asked = _now()
            current = self._driver.read_versioned(_name(key))
            if current is not None and not _is_free(current):
                return False
            until = None if hold_seconds is None else asked + hold_seconds
            fence = 1 if current is None else int(_body(current).get("fence", 0)) + 1
            lease = Lease(key, holder, fence, uuid.uuid4().hex, until)
            if not self._write(lease, current.token if current else None):
                return False
            self._held[key] = lease
            self._beat()
            return True

    def _write(self, lease: Lease, token: str | None) -> bool:
        """Write the lease over what has `token`, or where nothing is, and note how long it is good."""
        asked = _now()
        term = self._term if lease.until is None else min(self._term, max(0.0, lease.until - asked))
        data = canonical_json(
            {
                "key": lease.key,
                "holder": lease.holder,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "system": system(),
                "start_ticks": start_ticks(os.getpid()),
                "fence": lease.fence,
                "nonce": lease.nonce,
                "renewals": lease.renewals,
                "term_seconds": term,
                "released": False,
            }
        )
        name = _name(lease.key)
        won = (
            self._driver.put_if_absent(name, data)
            if token is None
            else self._driver.replace_if(name, data, token)
        )
        if not won:
            return False
        now = self._driver.read_versioned(name)
        if now is None or now.data != data:
            return False
        lease.token = now.token
        lease.good_until = asked + term
        return True

    def _adopt(self, lease: Lease) -> bool:
        """Take the token of our own last write, whose answer never came; False when the lock is another's."""
        current = self._driver.read_versioned(_name(lease.key))
        if current is None or _body(current).get("nonce") != lease.nonce:
            return False
        lease.token = current.token
        return True

    def _beat(self) -> None:
        if self._heart is None or not self._heart.is_alive():
            self._heart = threading.Thread(target=self._renew_forever, name="lease-heartbeat", daemon=True)
            self._heart.start()

    def _renew_forever(self) -> None:
        pause = self._term / 3
        failing: set[str] = set()
        while not self._stop.wait(pause):
            pause = self._term / 3
            with self._mutex:
                leases = list(self._held.values())
                if not leases:
                    self._heart = None
                    return
            for lease in leases:
                try:
                    self._renew(lease)
                    failing.discard(lease.nonce)
                except Exception as error:
                    # Whatever it is, a full disk or a rotated credential, it may pass before the lease ends.
                    if lease.nonce not in failing:
                        logger.warning("the lease on %s is not renewed, trying again: %s", lease.key, error)
                    failing.add(lease.nonce)
                    pause = self._term / 10

    def _renew(self, lease: Lease) -> None:
        with self._mutex:
            if self._held.get(lease.key) is not lease or lease.lost:
                return
            if lease.until is not None and _now() >= lease.until:
                return
            lease.renewals += 1
            if not self._write(lease, lease.token) and not (
                self._adopt(lease) and self._write(lease, lease.token)
            ):
                lease.lost = True
                logger.error("the lease on %s was taken over by another process", lease.key)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _name(key: str) -> str:
    return f"locks/{sha256_hex(key.encode())}.json"


def _body(current: Versioned) -> dict[str, Any]:
    try:
        body = parse_json(current.data, "the lease")
    except DamagedJson:
        return {}
    return body if isinstance(body, dict) else {}


def _is_free(current: Versioned) -> bool:
    """Released, of a process that died on this machine, expired by the store's clock, or no lease at all."""
    body = _body(current)
    if body.get("released", True):
        return True
    if _has_died(body.get("system", ""), int(body.get("pid", 0)), body.get("start_ticks")):
        return True
    return current.age_seconds > float(body.get("term_seconds", 0.0)) + CLOCK_STEP_SECONDS


def _has_died(where: str, pid: int, began: int | None) -> bool:
    """Whether a process is certainly dead that wrote its `system()` and `start_ticks()` into a lease."""
    if not where or began is None or where != system():
        return False
    return start_ticks(pid) != began


def claim(driver: Driver, key: str, owner: str) -> str:
    """Claim `key`, once for all time; return who has it: the first owner that asked, which may ask again."""
    name = f"claims/{sha256_hex(key.encode())}.json"
    if driver.put_if_absent(name, canonical_json({"key": key, "owner": owner})):
        return owner
    held = driver.get_bytes(name)
    try:
        return owner if held is None else str(parse_json(held, name)["owner"])
    except (KeyError, TypeError) as error:
        raise DamagedJson(f"{name} names no owner; delete it in {driver.uri('')}") from error
