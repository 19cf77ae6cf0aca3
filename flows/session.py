"""State of one call of the flow: loaded config, result, times outside of stages, progress display."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from resprout.configs.errors import Terminated
from resprout.configs.load import Loaded
from resprout.configs.result import RunResult
from resprout.flows.rivals import Rivals
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.core.run import Display
from resprout.tasks.core.termination import acknowledge
from resprout.tasks.core.time_left import TimeLeft, words
from resprout.tasks.report.shipped import Shipped


class NoDisplay:
    """No one watches: a look at the cache, a test."""

    def started(self, label: str) -> Progress:
        """Progress that goes nowhere."""
        return silent

    def waiting(self, stage: str) -> None:
        """No one to tell."""

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """Nothing to show."""


@dataclass
class Session:
    """`result` is filled as the run goes, so that a run that fails still says how far it came."""

    result: RunResult = field(default_factory=lambda: RunResult(status="failed", exit_code=1))
    display: Display = field(default_factory=NoDisplay)
    imports_seconds: float = 0.0
    server_start_seconds: float = 0.0
    source_bytes: int | None = None
    source_format: str = ""
    ships: Shipped | None = None
    averaged: list[str] = field(default_factory=list)
    """The accuracies behind zero_shot_mean_acc."""
    measured: str = ""
    """How speeds were measured, and how far the times of one model lay apart."""
    recovery: list[str] = field(default_factory=list)
    """Sentences on rungs of a ladder that were skipped, and on the loss of longer training."""
    called_at: float = 0.0
    """When the command line called the flow; 0 where a worker did."""
    loaded: Loaded | None = None
    """The config of the run, where the caller has loaded it."""
    interrupted: bool = False
    """Ctrl-C was pressed, or another signal ends the process."""
    remarks: list[str] = field(default_factory=list)
    """Warnings that do not end the run, say of licences that the policy warns of."""
    tags: dict[str, str] = field(default_factory=dict)
    """Further tags of the run in MLflow."""
    parent: str | None = None
    """MLflow run of the sweep, in which the run of a variant is nested."""
    rivals: Rivals | None = None
    """Variants of a search, which ends the run where one of them is better once it is pruned."""

    def interrupt(self) -> None:
        """Let stages and threads of the run stop at their next step."""
        self.interrupted = True

    def interrupt_on_signal(self, kind: type[BaseException] | None, *_: object) -> None:
        """Interrupt where a signal unwinds the stack, as an exit callback of it.

        Prefect's own handler of SIGTERM replaces ours while a flow runs.
        """
        if kind is not None and not issubclass(kind, Exception):
            self.interrupt()

    def stop_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt where a signal ends the process."""
        if self.interrupted:
            raise KeyboardInterrupt


_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session:
    """The session of the caller, or a new one where Prefect called the flow itself."""
    return _current.get() or Session(display=LogDisplay())


@contextmanager
def using(session: Session) -> Iterator[None]:
    """Make `session` the current one."""
    token = _current.set(session)
    try:
        yield
    finally:
        _current.reset(token)


logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0


class LogDisplay:
    """One line where a stage begins and ends, and one every half minute between."""

    def started(self, label: str) -> Progress:
        """Log that the stage began and, as it goes, how far it is."""
        logger.info("%s: started", label, extra={"stage": label})
        last, left = time.monotonic(), TimeLeft()

        def update(done: int, total: int, what: str) -> None:
            nonlocal last
            seconds = left(done, total)
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                more = {} if seconds is None else {"seconds_left": round(seconds)}
                logger.info(
                    "%s", line(label, done, total, what, seconds),
                    extra={"stage": label, "done": done, "total": total, **more},
                )  # fmt: skip

        return update

    def waiting(self, stage: str) -> None:
        """Log that another run computes it."""
        logger.info("%s", waiting(stage), extra={"stage": stage})

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """Log how the stage ended."""
        more = {"stage": label, "cached": cached, "seconds": round(seconds, 3)}
        logger.info("%s", finished(label, cached, seconds), extra=more)


def line(label: str, done: int, total: int, what: str, seconds_left: float | None) -> str:
    """The line for a stage that is so far."""
    left = words(seconds_left)
    return f"{label}: {done} of {total} {what}{f', {left}' if left else ''}"


def waiting(stage: str) -> str:
    """The line for a stage that another run computes."""
    return f"{stage}: waiting: another run is computing this stage"


def finished(label: str, cached: bool, seconds: float) -> str:
    """The line for a stage that ended."""
    return f"{label}: found in the cache" if cached else f"{label}: done in {seconds:.1f} s"


def end_on_signals(noted: Callable[[], None]) -> None:
    """Raise KeyboardInterrupt on Ctrl-C, Terminated on the others, after `noted`: libraries swallow some.

    A signal that the caller ignores (nohup) stays ignored. While a flow runs, Prefect has its own handler
    for SIGTERM, which hands on to this one at its end.
    """
    answered = False

    def end(number: int, frame: object) -> None:
        nonlocal answered
        noted()
        if not answered:
            answered = True
            acknowledge(number, "the run ends; finished stages are kept")
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
