"""Shows progress: bars with time left on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from resprout.flows.session import LogDisplay, finished, line, waiting
from resprout.infra import logs
from resprout.tasks.core.job import Progress as Callback
from resprout.tasks.core.job import silent
from resprout.tasks.core.run import Display
from resprout.tasks.core.time_left import TimeLeft, words

LINE_SECONDS = 10.0


class TerminalDisplay:
    """Rich bars where stderr is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )

    def started(self, label: str) -> Callback:
        """Draw a bar for the stage until it is finished."""
        self.bars.start()
        for old in list(self.bars.task_ids):
            self.bars.remove_task(old)
        bar, left = self.bars.add_task(label, total=None, what="starting", left=""), TimeLeft()

        def update(done: int, total: int, what: str) -> None:
            shown = words(left(done, total))
            count = f"{done}/{total} {what}"
            self.bars.update(bar, completed=done, total=total, what=count, left=shown)

        return update

    def waiting(self, stage: str) -> None:
        """Print that another run computes it."""
        self.console.print(waiting(stage), highlight=False)

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """Replace the bar by a line that stays."""
        self.bars.stop()
        for old in list(self.bars.task_ids):
            self.bars.remove_task(old)
        self.console.print(finished(label, cached, seconds), highlight=False)


class LineDisplay:
    """Plain lines, one every ten seconds at most for a running stage.

    With a `name` those of one of several runs, behind its name, and none of running stages.
    """

    def __init__(self, console: Console, name: str = "") -> None:
        self.console = console
        self.name = name

    def started(self, label: str) -> Callback:
        """Print that the stage began and, as it goes, how far it is."""
        if self.name:
            return silent
        self._print(f"{label}: started")
        last, left = time.monotonic(), TimeLeft()

        def update(done: int, total: int, what: str) -> None:
            nonlocal last
            seconds = left(done, total)
            now = time.monotonic()
            if now - last >= LINE_SECONDS:
                last = now
                self._print(line(label, done, total, what, seconds))

        return update

    def waiting(self, stage: str) -> None:
        """Print that another run computes it."""
        self._print(waiting(stage))

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """Print how the stage ended."""
        self._print(finished(label, cached, seconds))

    def _print(self, line: str) -> None:
        self.console.print(f"{self.name}: {line}" if self.name else line, highlight=False)


@contextmanager
def display_for(console: Console, form: str) -> Iterator[Display]:
    """JSON log lines where `form` asks for them; else bars on a terminal, lines elsewhere.

    Bars end with the context, however it is left: a bar that is still drawn hides the terminal's cursor.
    """
    if form == "json":
        logs.configure(form)
        yield LogDisplay()
    elif not console.is_terminal:
        yield LineDisplay(console)
    else:
        shown = TerminalDisplay(console)
        try:
            yield shown
        finally:
            shown.bars.stop()


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that draws while the block lasts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with Progress(console=console, transient=True) as drawn:
        task = drawn.add_task(title, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)
