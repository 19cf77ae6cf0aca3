"""Measuring processes as the process that asks them sees them: a line is answered by a line, in JSON."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from tempfile import TemporaryFile
from typing import IO, Any

from resprout.configs.errors import StageFailed
from resprout.tasks.measure.worker import Ready, Request, Times

COMMAND = [sys.executable, "-m", "resprout.tasks.measure.worker"]
Start = Callable[[Request], AbstractContextManager["Child"]]
"""Gives a measuring process for a model, which ends with the block."""


class Child:
    """A process for one model; what goes wrong in it raises StageFailed with the last words in `said`."""

    def __init__(self, channel: socket.socket, said: IO[bytes], request: Request) -> None:
        self._channel, self._said, self._request = channel, said, request
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
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip().splitlines()
            raise StageFailed(
                f"the measuring process stopped ({(words or ['it was killed'])[-1]}); if it ran out of "
                "memory, lower measure.prefill_tokens or measure.batch_size, or set measure: null"
            )
        return dict(json.loads(answer))


@contextmanager
def starter() -> Iterator[Start]:
    """Starts measuring processes out of one that has read the libraries, and kills all with it."""
    ours, theirs = socket.socketpair()
    with TemporaryFile() as said, ours:
        with theirs:
            process = subprocess.Popen(COMMAND, stdin=theirs.fileno(), stdout=said, stderr=said)

        @contextmanager
        def start(request: Request) -> Iterator[Child]:
            channel, its_end = socket.socketpair()
            with channel:
                with its_end, suppress(ConnectionError):
                    socket.send_fds(ours, [b"."], [its_end.fileno()])
                child = Child(channel, said, request)
                yield child
                child.end()

        try:
            yield start
        finally:
            process.terminate()
            process.wait()
