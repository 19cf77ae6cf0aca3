"""Group commit: deliveries that arrive while one commit runs share the next, and each waits for its own."""

from __future__ import annotations

import asyncio
import queue
import threading

from sqlalchemy.exc import SQLAlchemyError

from resprout.infra.relay.delivery import Delivery, Refused
from resprout.infra.relay.outbox import Outbox
from resprout.infra.relay.tables import said

MOST_AT_ONCE = 500
MOST_WAITING = 5000


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
        return await future

    def stop(self) -> None:
        """Write what is there, then end."""
        self._queue.put(None)
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
        loop = futures[0].get_loop()
        try:
            found = self._outbox.add(delivery for delivery, _ in batch)
        except SQLAlchemyError as error:
            no = Refused(
                503,
                "outbox",
                f"a delivery that the outbox cannot keep ({said(error)}); MLflow sends it again",
            )
            loop.call_soon_threadsafe(_refuse, futures, no)
            return
        loop.call_soon_threadsafe(_answer, futures, found)


def _answer(futures: list[asyncio.Future[bool]], found: list[bool]) -> None:
    for future, new in zip(futures, found, strict=True):
        if not future.done():
            future.set_result(new)


def _refuse(futures: list[asyncio.Future[bool]], no: Refused) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(no)
