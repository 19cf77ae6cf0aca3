"""Waiting for servers: a run that nobody watches sleeps through an outage and goes on from where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from resprout.configs.errors import Transient, Unreachable

T = TypeVar("T")

logger = logging.getLogger(__name__)

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 60.0


def patiently(work: Callable[[], T], seconds: float, got_on: Callable[[], bool] = lambda: False) -> T:
    """What `work` returns; while a server is down it is called again, until that has lasted `seconds`.

    `got_on` says whether the call that failed got anything done, so that a later outage is another one. The
    pause grows from 5 s to a minute. Raises the last Transient or Unreachable, and any other error at once.
    """
    since = time.monotonic()
    pause = FIRST_SECONDS
    while True:
        try:
            return work()
        except (Transient, Unreachable) as error:
            if got_on():
                since, pause = time.monotonic(), FIRST_SECONDS
            left = since + seconds - time.monotonic()
            if left <= 0:
                raise
            logger.warning("%s; trying again in %.0f s, for %.0f s more", error, min(pause, left), left)
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_SECONDS)
