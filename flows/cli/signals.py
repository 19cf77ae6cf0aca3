"""Signals that end a run: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable

from resprout.configs.errors import Terminated


def end_on_signals(noted: Callable[[], None]) -> None:
    """Raise KeyboardInterrupt on Ctrl-C, Terminated on the others, after `noted`: libraries swallow some.

    A signal that the caller ignores (nohup) stays ignored. While a flow runs, Prefect has its own handler
    for SIGTERM, which hands on to this one at its end.
    """

    def end(number: int, frame: object) -> None:
        noted()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
