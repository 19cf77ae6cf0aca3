"""Shows progress in the log: for runs that a worker started, and where log lines are wanted."""

from __future__ import annotations

import logging
import time

from resprout.tasks.core.job import Progress

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0


class LogDisplay:
    """One line where a stage begins and ends, and one every half minute between."""

    def started(self, label: str) -> Progress:
        """Log that the stage began and, as it goes, how far it is."""
        logger.info("%s: started", label, extra={"stage": label})
        last = time.monotonic()

        def update(done: int, total: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                logger.info(
                    "%s: %d of %d %s", label, done, total, what,
                    extra={"stage": label, "done": done, "total": total},
                )  # fmt: skip

        return update

    def waiting(self, stage: str) -> None:
        """Log that another run is at work on it."""
        logger.info("%s: waiting for another run that is making it", stage, extra={"stage": stage})

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """Log how the stage ended."""
        how = "found in the cache" if cached else f"done in {seconds:.1f} s"
        logger.info(
            "%s: %s", label, how, extra={"stage": label, "cached": cached, "seconds": round(seconds, 3)}
        )
