"""Group commit: deliveries that arrive while one commit runs share the next, and each waits for its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from resprout.infra.relay.delivery import Delivery, Refused
from resprout.infra.relay.outbox import Outbox
from resprout.infra.relay.tables import said

MOST_AT_ONCE = 500
MOST_WAITING = 5000
PUT_SECONDS = 20.0


class Writer(threading.Thread):
    """The one thread that writes deliveries."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(name="relay-writer", daemon=True)
        self._outbox = outbox
        self._queue: queue.SimpleQueue[tuple[Delivery, asyncio.Future[bool]] | None] = queue.SimpleQueue()

    async def put(self, delivery: Delivery) -> bool:
        """Whether the delivery is new, once it is committed; raises Refused where it cannot be."""
        if self._queue.qsize() > MOST_WAITING:
            raise Refused(503, "full", "deliveries arrive faster than the outbox's disk takes them")
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.put((delivery, future))
        try:
            async with asyncio.timeout(PUT_SECONDS):
                return await future
        except TimeoutError:
            # It may be kept yet; told again it is a duplicate then.
            raise Refused(503, "outbox", "a delivery that the outbox took too long to keep") from None

    def end(self) -> None:
        """Have it write what is there, then end."""
        self._queue.put(None)

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        self.join()

    def run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < MOST_AT_ONCE and batch[-1] is not None:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            taken = [one for one in batch if one is not None]
            if taken:
                self._write(taken)
            if batch[-1] is None:
                return

    def _write(self, batch: list[tuple[Delivery, asyncio.Future[bool]]]) -> None:
        futures = [future for _, future in batch]
        try:
            found = self._outbox.add(delivery for delivery, _ in batch)
        except Exception as error:
            # Whatever it is, the next batch must find this thread alive.
            what = said(error) if isinstance(error, SQLAlchemyError) else type(error).__name__
            sentence = f"a delivery that the outbox cannot keep ({what}); MLflow sends it again"
            self._tell(_refuse, futures, Refused(503, "outbox", sentence))
        else:
            self._tell(_answer, futures, found)

    def _tell(self, how: Callable[..., None], futures: list[asyncio.Future[bool]], what: object) -> None:
        # Where the loop has ended nobody waits any more.
        with suppress(RuntimeError):
            futures[0].get_loop().call_soon_threadsafe(how, futures, what)


def _answer(futures: list[asyncio.Future[bool]], found: list[bool]) -> None:
    for future, new in zip(futures, found, strict=True):
        if not future.done():
            future.set_result(new)


def _refuse(futures: list[asyncio.Future[bool]], no: Refused) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(no)
