"""Time to save before a signal ends the process: it is noted, and handed on when the block is through."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def acknowledge(number: int, then: str) -> None:
    """Answer a signal at once by a line on stderr: its name, and what happens `then`."""
    # In the middle of another write the line is left out: a buffer takes one writer at a time.
    with suppress(RuntimeError, OSError, ValueError):
        sys.stderr.write(f"\n{signal.Signals(number).name}: {then}\n")
        sys.stderr.flush()


@dataclass
class Termination:
    """The signal that came first since the block began."""

    number: int | None = None

    @property
    def asked(self) -> bool:
        """Whether the process is to end: save, and leave the block."""
        return self.number is not None


@contextmanager
def deferred_termination() -> Iterator[Termination]:
    """Note SIGTERM, SIGINT and SIGHUP instead of raising in the middle of a step.

    The handlers that were there before (Prefect's, which raises; the command line's; the system's) are back
    at the end of the block, however it ends, and are handed what was noted. A second signal is handed on at
    once. Those that are ignored stay so. Python handles signals in the main thread, so in any other nothing
    changes and nothing is noted.
    """
    noted = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    # What was not set from Python (None) cannot be put back by it.
    ours = {number: was for number, was in before.items() if was not in (signal.SIG_IGN, None)}

    deferring = True

    def restore() -> None:
        nonlocal deferring
        deferring = False
        for number, was in ours.items():
            signal.signal(number, was)

    def note(number: int, frame: FrameType | None) -> None:
        if noted.number is None:
            noted.number = number
            acknowledge(number, "this step is finished and saved, then the run ends; again: at once")
            return
        restore()
        signal.raise_signal(number)

    for number in ours:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        # Where a second one came, this was done then.
        if deferring:
            restore()
            if noted.number is not None:
                signal.raise_signal(noted.number)
