"""Measuring processes and the rounds in which they take turns; each answers a line of JSON with a line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any

from resprout.configs.errors import StageFailed
from resprout.tasks.core.job import Progress
from resprout.tasks.measure.worker import MeasureRequest, Ready, Times

COMMAND = [sys.executable, "-m", "resprout.tasks.measure.worker"]
Start = Callable[[MeasureRequest], AbstractContextManager["Child"]]
"""Gives a measuring process for a model, which ends with the block."""


class Child:
    """A process for one model; what goes wrong in it raises StageFailed with the last words in `output`."""

    def __init__(self, channel: socket.socket, output: IO[bytes], request: MeasureRequest) -> None:
        self._channel, self._output, self._request = channel, output, request
        self._answers = channel.makefile("rb")

    def load(self) -> Ready:
        """Load the model, which comes first; answered once it is warm."""
        return Ready(**self._ask(asdict(self._request)))

    def times(self, runs: int) -> Times:
        """Times of so many runs of the loaded model."""
        return Times(**self._ask(runs))

    def end(self) -> None:
        """Tell an idle process to end, and wait until it has given its memory back."""
        self._channel.shutdown(socket.SHUT_WR)
        self._answers.read()

    def _ask(self, line: Any) -> dict[str, Any]:
        with suppress(ConnectionError):
            # A process that has ended gives no answer, and says why below.
            self._channel.sendall(json.dumps(line).encode() + b"\n")
        answer = b""
        with suppress(ConnectionError):
            answer = self._answers.readline()
        if not answer:
            self._output.seek(0)
            words = self._output.read().decode(errors="replace").strip().splitlines()
            raise StageFailed(
                f"the measuring process stopped ({(words or ['it was killed'])[-1]}); if it ran out of "
                "memory, lower prefill_tokens or batch_size in measure and its grid, or set measure: null"
            )
        return dict(json.loads(answer))


@contextmanager
def starter() -> Iterator[Start]:
    """Starts measuring processes out of one that has read the libraries, and kills all with it."""
    ours, theirs = socket.socketpair()
    with TemporaryFile() as output, ours:
        with theirs:
            process = subprocess.Popen(COMMAND, stdin=theirs.fileno(), stdout=output, stderr=output)

        @contextmanager
        def start(request: MeasureRequest) -> Iterator[Child]:
            channel, its_end = socket.socketpair()
            with channel:
                with its_end, suppress(ConnectionError):
                    socket.send_fds(ours, [b"."], [its_end.fileno()])
                child = Child(channel, output, request)
                yield child
                child.end()

        try:
            yield start
        finally:
            process.terminate()
            process.wait()


WINDOW = 3
"""Rounds for which a model stays where only one fits: with more drift weighs more, with fewer loading."""


@dataclass
class ModelTimes:
    """A model's seconds by round and point; of start and loading; threads in use, peak memory in bytes."""

    start_seconds: float
    load_seconds: float
    threads: int
    seconds: list[list[tuple[float, float]]] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def add(self, times: Times) -> None:
        """Append further rounds."""
        self.seconds += times.seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, times.peak_memory_bytes)


def together(
    requests: Mapping[str, MeasureRequest], rounds: int, progress: Progress
) -> dict[str, ModelTimes]:
    """Answers by model; all processes stay, and each round asks each for one run."""
    answers: dict[str, ModelTimes] = {}
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


def in_turn(requests: Mapping[str, MeasureRequest], rounds: int, progress: Progress) -> dict[str, ModelTimes]:
    """Answers by model; one process at a time, which is asked for the runs of WINDOW rounds."""
    answers: dict[str, ModelTimes] = {}
    with starter() as start:
        for number, first in enumerate(range(0, rounds, WINDOW)):
            for name in _order(requests, number):
                with start(requests[name]) as child:
                    answer = answers.setdefault(name, _begun(child.load()))
                    answer.add(child.times(min(WINDOW, rounds - first)))
            progress(min(first + WINDOW, rounds), rounds, "rounds")
    return {name: answers[name] for name in requests}


def _begun(ready: Ready) -> ModelTimes:
    return ModelTimes(ready.start_seconds, ready.load_seconds, ready.threads)


def _order(requests: Mapping[str, MeasureRequest], number: int) -> list[str]:
    names = [*requests]
    return names if number % 2 == 0 else names[::-1]
