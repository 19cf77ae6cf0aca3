"""Rounds in which each model has its turn, forwards and backwards, so that the machine's drift cancels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from resprout.tasks.core.job import Progress
from resprout.tasks.measure.child import starter
from resprout.tasks.measure.worker import Ready, Request, Times

WINDOW = 3
"""Rounds for which a model stays where only one fits: with more drift weighs more, with fewer loading."""


@dataclass
class Answer:
    """A model's times, one a round; seconds of start and loading, threads in use, peak memory in bytes."""

    start_seconds: float
    load_seconds: float
    threads: int
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def add(self, times: Times) -> None:
        """Append further rounds."""
        self.prefill_seconds += times.prefill_seconds
        self.decode_seconds += times.decode_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, times.peak_memory_bytes)


def together(requests: Mapping[str, Request], rounds: int, progress: Progress) -> dict[str, Answer]:
    """Answers by model; all processes stay, and each round asks each for one run."""
    answers: dict[str, Answer] = {}
    with starter() as start, ExitStack() as running:
        children = {name: running.enter_context(start(request)) for name, request in requests.items()}
        # One after another, so that no loading is timed beside another.
        for name, child in children.items():
            answers[name] = _begun(child.load())
            progress(len(answers), len(requests), "models loaded")
        for number in range(rounds):
            for name in _order(requests, number):
                answers[name].add(children[name].times(1))
            progress(number + 1, rounds, "rounds")
    return answers


def in_turn(requests: Mapping[str, Request], rounds: int, progress: Progress) -> dict[str, Answer]:
    """Answers by model; one process at a time, which is asked for the runs of WINDOW rounds."""
    answers: dict[str, Answer] = {}
    with starter() as start:
        for number, first in enumerate(range(0, rounds, WINDOW)):
            for name in _order(requests, number):
                with start(requests[name]) as child:
                    answer = answers.setdefault(name, _begun(child.load()))
                    answer.add(child.times(min(WINDOW, rounds - first)))
            progress(min(first + WINDOW, rounds), rounds, "rounds")
    return {name: answers[name] for name in requests}


def _begun(ready: Ready) -> Answer:
    return Answer(ready.start_seconds, ready.load_seconds, ready.threads)


def _order(requests: Mapping[str, Request], number: int) -> list[str]:
    names = [*requests]
    return names if number % 2 == 0 else names[::-1]
