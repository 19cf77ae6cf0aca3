"""Curves of a stage in its own MLflow run while it works: the run is RUNNING then, and grows by batches.

What cannot be sent waits for the next batch: a server that is away costs no step of the work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from resprout.infra.mlflow.tracking import Point, Tracker

logger = logging.getLogger(__name__)

BATCH_SECONDS = 5.0
"""Between two batches."""
LAST_SECONDS = 5.0
"""How long the end of a stage waits for the batch that is under way."""


@dataclass
class LiveCurves:
    """Numbers over steps for the run `name` nested in `parent`, which begins with the first of them.

    Of a name each step counts once. A run that an earlier attempt at the same `key` left there goes on; the
    points that it has are not sent again.
    """

    tracker: Tracker
    parent: str
    name: str
    key: str
    tags: Mapping[str, str]
    run_id: str | None = field(default=None, init=False)
    _known: set[tuple[str, int]] = field(default_factory=set, init=False)
    """Name and step of each point that was sent or waits."""
    _waiting: list[Point] = field(default_factory=list, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ending: threading.Event = field(default_factory=threading.Event, init=False)
    _sender: threading.Thread | None = field(default=None, init=False)
    _failing: bool = field(default=False, init=False)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` at `step`, some seconds later; nothing is sent here, and nothing raises."""
        now = int(time.time() * 1000)
        with self._mutex:
            for name, value in values.items():
                if (name, step) not in self._known:
                    self._known.add((name, step))
                    self._waiting.append(Point(name, float(value), now, step))
            if self._sender is None and self._waiting:
                self._ending = threading.Event()
                self._sender = threading.Thread(
                    target=self._send_forever, args=(self._ending,), name="live-curves", daemon=True
                )
                self._sender.start()

    @property
    def shown(self) -> set[tuple[str, int]]:
        """Name and step of all points that the run has, or that `close` returns."""
        with self._mutex:
            return set(self._known)

    def close(self) -> list[Point]:
        """Send what waits, for no longer than some seconds, and return what is left."""
        with self._mutex:
            sender, self._sender = self._sender, None
        if sender is not None:
            self._ending.set()
            sender.join(LAST_SECONDS)
        with self._mutex:
            return list(self._waiting)

    def end(self, error: BaseException) -> None:
        """Close the run, if it began, as one that this error ended: FAILED, or KILLED by a signal."""
        self.close()
        if self.run_id is None:
            return
        try:
            self.tracker.end(self.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        except Exception as lost:
            # What ended the stage counts; the next run ends what a dead one left RUNNING.
            logger.debug("the MLflow run of %s stays open: %s", self.name, lost)

    def _send_forever(self, ending: threading.Event) -> None:
        last = False
        while not last:
            last = ending.wait(BATCH_SECONDS)
            self._send()

    def _send(self) -> None:
        try:
            if self.run_id is None:
                self._begin()
            with self._mutex:
                points = list(self._waiting)
            if self.run_id is not None and points:
                self.tracker.log_points(self.run_id, points)
                with self._mutex:
                    del self._waiting[: len(points)]
            self._failing = False
        except Exception as error:
            # Hours of work do not end because a server that only watches restarts.
            if not self._failing:
                logger.warning("the curves of %s wait, and the work goes on: %s", self.name, error)
            self._failing = True

    def _begin(self) -> None:
        before = self.tracker.unfinished(self.name, self.key, self.parent)
        run_id = before or self.tracker.start(self.name, self.tags, parent=self.parent)
        there = self.tracker.steps_of(run_id) if before else set()
        with self._mutex:
            self.run_id = run_id
            self._waiting = [one for one in self._waiting if (one.name, one.step) not in there]
            self._known |= there
