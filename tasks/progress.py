"""How far a stage is, for the display and for Prefect's server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from resprout.tasks.job import Progress

logger = logging.getLogger(__name__)

ARTIFACT_SECONDS = 5.0


class Throttled:
    """Progress to the display at once, to Prefect's progress artifact every few seconds."""

    def __init__(self, display: Progress, label: str, stop: Callable[[], None]) -> None:
        self.display = display
        self.stop = stop
        self.key = "".join(char if char.isalnum() else "-" for char in label.lower())
        self.shown = time.monotonic()
        self.artifact: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        self.stop()
        self.display(done, total, what)
        if time.monotonic() - self.shown < ARTIFACT_SECONDS:
            return
        self.shown = time.monotonic()
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent = 100.0 * done / max(total, 1)
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(progress=percent, key=self.key, description=what)
            else:
                update_progress_artifact(self.artifact, progress=percent)
        except Exception as error:
            # Hours of work do not end because a server that only watches restarts.
            logger.debug("Prefect did not take the progress of %s: %s", self.key, error)
