"""Retries while a server is down: an unattended run waits through an outage and continues where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from resprout.configs.errors import Transient, Unreachable

T = TypeVar("T")

logger = logging.getLogger(__name__)

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 60.0
WORKED_SECONDS = 1500.0
"""No call to a server that is down lasts as long, with all tries of the libraries underneath."""


def retry_while_down(
    work: Callable[[], T],
    seconds: float,
    progressed: Callable[[], bool] = lambda: False,
    stop: Callable[[], None] = lambda: None,
) -> T:
    """Return what `work` returns; while a server is down, call it again for `seconds` since the first fault.

    A call that made progress (`progressed`), or that lasted long enough to have, was no part of an outage: a
    failure at its end begins another. The pause grows from 5 s to a minute; `stop` is called before each and
    may raise. Raises the last Transient or Unreachable, and any other error at once.
    """
    since: float | None = None
    pause = FIRST_SECONDS
    while True:
        began = time.monotonic()
        try:
            return work()
        except (Transient, Unreachable) as error:
            now = time.monotonic()
            if since is None or progressed() or now - began > WORKED_SECONDS:
                since, pause = now, FIRST_SECONDS
            left = since + seconds - now
            if left <= 0:
                raise
            stop()
            logger.warning("%s; trying again in %.0f s, for %.0f s more", error, min(pause, left), left)
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_SECONDS)
