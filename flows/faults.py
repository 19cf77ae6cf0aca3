"""Faults of a config: the key, and a sentence on what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from resprout.configs.errors import ResproutError

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
