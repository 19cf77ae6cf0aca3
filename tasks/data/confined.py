"""Call a function of ours on items in a child process, within limits of processor time, memory and output.

For what is somebody else's program, or can be made to act as one: templates and documents. A sandbox keeps a
template from files and attributes, not from a loop without end or a text without bounds.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple, TypeVar

from resprout.configs.errors import BadInput
from resprout.tasks.data import confined_child
from resprout.tasks.data.confined_child import TAG, TYPES

T = TypeVar("T")
SECONDS = 5
SECONDS_AN_ITEM = 0.02
"""Processor time of a batch; a template in use takes a tenth of a millisecond a row."""
BATCH_ITEMS, BATCH_CHARACTERS = 512, 1 << 22


class Failed(NamedTuple):
    """What the function raised on an item; `ended` where its process did not survive that."""

    kind: str
    said: str
    ended: bool = False

    def __str__(self) -> str:
        """Type and text of the error, or which limit it is."""
        return self.said if self.ended or self.kind == "MemoryError" else f"{self.kind}: {self.said}"


class Confined:
    """A function in a child process, which starts with the first item and ends with this object."""

    def __init__(
        self,
        make: Callable[[Any], Callable[[Any], Any]],
        given: Any,
        seconds_an_item: float = SECONDS_AN_ITEM,
    ) -> None:
        """Name the function; nothing runs yet.

        Args:
            make: Public function of a module of ours that returns the function to call.
            given: Its argument, plain as JSON.
            seconds_an_item: Processor time of an item, beside the `SECONDS` of a batch.
        """
        self._make, self._given, self._seconds_an_item = make, given, seconds_an_item
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __call__(self, items: Iterable[Any]) -> list[Any]:
        """The result of each item, plain as JSON, or `Failed`."""
        return [found for _, found in self.over((None, item) for item in items)]

    def over(self, items: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
        """What each item comes with, and its result or `Failed`; calls in batches.

        What `items` raises is raised behind the results of the items before.
        """
        rest, more = iter(items), True
        while more:
            names, texts, size, tagged, fault = list[T](), list[str](), 0, False, None
            try:
                while len(texts) < BATCH_ITEMS and size < BATCH_CHARACTERS:
                    name, item = next(rest)
                    text, own = _as_json(item)
                    names.append(name)
                    texts.append(text)
                    size, tagged = size + len(text), tagged or own
            except StopIteration:
                more = False
            except BadInput as error:
                fault = error
            yield from zip(names, self._batch(texts, tagged), strict=True)
            if fault is not None:
                raise fault

    def _batch(self, texts: Sequence[str], tagged: bool) -> Iterator[Any]:
        if not texts:
            return
        with self._lock:
            found = self._asked(texts, tagged)
        if not isinstance(found, Failed):
            yield from found
        elif not found.ended or len(texts) == 1:
            yield from [found] * len(texts)
        else:
            # Which of them it was.
            for text in texts:
                yield from self._batch([text], tagged)

    def _asked(self, texts: Sequence[str], tagged: bool) -> list[Any] | Failed:
        """The results; `Failed` where there is no function, or its process ended."""
        found: list[Any] | Failed
        if self._child is None:
            self._child = child = _Child(self._make)
            weakref.finalize(self, child.end)
            found = child.answer([json.dumps(self._given)], False, self._seconds(1))
            if isinstance(found, list) and isinstance(found[0], Failed):
                found = found[0]
        else:
            child, found = self._child, []
        if not isinstance(found, Failed):
            found = child.answer(texts, tagged, self._seconds(len(texts)))
        if isinstance(found, Failed):
            child.end()
            self._child = None
        return found

    def _seconds(self, items: int) -> int:
        return math.ceil(SECONDS + self._seconds_an_item * items)


class _Child:
    def __init__(self, make: Callable[..., Any]) -> None:
        environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the child runs)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", confined_child.__name__, make.__module__, make.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            # An interrupt is for the parent to answer, whose end of the pipe ends the child.
            start_new_session=True,
        )

    def answer(self, texts: Sequence[str], tagged: bool, seconds: int) -> list[Any] | Failed:
        line, head = b"", json.dumps({"seconds": seconds, "tagged": tagged})[:-1]
        if (given := self.process.stdin) is None or (taken := self.process.stdout) is None:
            raise ValueError("the child has no pipes")
        try:
            given.write(f'{head}, "items": [{",".join(texts)}]}}\n'.encode("ascii"))
            given.flush()
            line = taken.readline()
        except (BrokenPipeError, ConnectionResetError):
            pass
        if line.endswith(b"\n"):
            return [Failed(*one[1:]) if one[0] else one[1] for one in json.loads(line)]
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            return Failed("Ended", f"did not end within {seconds} s of processor time", ended=True)
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        return Failed(
            "Ended", f"ended its process ({(lines or [f'exit status {code}'])[-1][:300]})", ended=True
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _as_json(item: Any) -> tuple[str, bool]:
    """An item as ASCII, and whether values that JSON does not have stand in it by their `TAG`."""
    tagged = False

    def other(value: Any) -> dict[str, list[str]]:
        nonlocal tagged
        for name, (type_, write, _) in TYPES.items():
            if isinstance(value, type_):
                tagged = True
                return {TAG: [name, write(value)]}
        raise BadInput(
            f"a column holds a value of type {type(value).__name__}, which templates with loops or calls "
            "cannot take; cast it to text in the file"
        )

    try:
        return json.dumps(item, default=other), tagged
    except RecursionError as error:
        raise BadInput(
            "a column holds a value that is nested too deep for templates with loops or calls; leave it out "
            "of the file, or write it as text"
        ) from error
