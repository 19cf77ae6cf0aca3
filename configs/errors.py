"""Errors that a user can act on: one sentence each, and the exit code of the command that raised it."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class ResproutError(Exception):
    """Base of all errors that are shown without a traceback; `exit_code` is the command's exit status."""

    exit_code = 1


class BadInput(ResproutError, ValueError):
    """Input of the user cannot be used; the message says what was given, what is allowed, what to do."""

    exit_code = 2


class DoesNotFit(BadInput):
    """The config is right in itself, but not for this model: another model or size would do."""


class Unreachable(BadInput):
    """A server that the config names does not answer: it is down, or its address is wrong."""


class StageFailed(ResproutError, RuntimeError):
    """A stage met something that trying again would not fix (NaN, out of memory, a full disk)."""

    exit_code = 1


class GateNotPassed(ResproutError):
    """The compressed model is outside the bounds of its gate."""

    exit_code = 3


class VerificationFailed(ResproutError):
    """Bytes, a tag or a link are not what the record says."""

    exit_code = 4


class Transient(ResproutError, ConnectionError):
    """A network, throttling or server fault, or a crashed training process; the stage is tried again."""

    exit_code = 1


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C that ends a run in the same way: finished stages are kept."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class StoppedWatching(KeyboardInterrupt):
    """Ctrl-C where a command only watches a run, which goes on; the sentence says how to stop it."""


Fault = tuple[str, str]


def faults_in(key: str, step: Callable[[], object]) -> list[Fault]:
    """The fault that `step` raises; none where it ends."""
    try:
        step()
    except ResproutError as error:
        return [(key, str(error))]
    return []


def sentences(faults: Iterable[Fault]) -> str:
    """All faults in one text, each once: what one file has wrong is one fault, however many keys name it."""
    keys: dict[str, dict[str, None]] = {}
    for key, sentence in faults:
        keys.setdefault(sentence, {})[key] = None
    return "; ".join(f"{', '.join(names)}: {sentence}" for sentence, names in keys.items())
