"""A measuring process as the process that started it sees it: asked a line, it answers a line, in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from tempfile import TemporaryFile
from typing import IO, Any

from resprout.configs.errors import StageFailed
from resprout.tasks.measure.worker import Ready, Request, Times

COMMAND = [sys.executable, "-m", "resprout.tasks.measure.worker"]
PIPE = subprocess.PIPE


class Child:
    """One model in a process of its own, loaded and warm; what the process says beside lies in `said`."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes], request: Request) -> None:
        self._process, self._said = process, said
        self.ready = Ready(**self._ask(asdict(request)))

    def times(self, runs: int) -> Times:
        """Times of so many runs; a process that fails raises StageFailed with its last words."""
        return Times(**self._ask(runs))

    def _ask(self, line: Any) -> dict[str, Any]:
        asked, answered = self._process.stdin, self._process.stdout
        if asked is None or answered is None:
            raise StageFailed("the measuring process has no pipes; run again")
        with suppress(BrokenPipeError):
            # A process that has ended gives no answer, and says why below.
            asked.write(json.dumps(line).encode() + b"\n")
        answer = answered.readline()
        if not answer:
            code = self._process.wait()
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip().splitlines()
            reason = (words or [f"exit status {code}"])[-1]
            raise StageFailed(
                f"the measuring process stopped ({reason}); if it ran out of memory, lower "
                "measure.prefill_tokens or measure.batch_size, or set measure: null"
            )
        return dict(json.loads(answer))


@contextmanager
def started(request: Request) -> Iterator[Child]:
    """A measuring process for a model, ended with the block."""
    # Without buffers, since what a process that has ended did not take would be written again at the end.
    with (
        TemporaryFile() as said,
        subprocess.Popen(COMMAND, stdin=PIPE, stdout=PIPE, stderr=said, bufsize=0) as process,
    ):
        try:
            yield Child(process, said, request)
        finally:
            # Nothing of it is needed any more, so it need not end by itself.
            process.kill()
