"""Patterns of valid store keys; a key that matches none was not written by resprout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from resprout.infra.store.driver import Driver

ID = "[0-9a-f]{64}"
SHAPES = {
    "content": rf"{ID}/.+",
    "manifests": rf"{ID}\.json",
    "quarantine": rf"{ID}\.json",
    "records": rf"{ID}\.json",
    "signatures": f"{ID}/{ID}",
    "made": f"{ID}/{ID}",
    "used": f"{ID}/{ID}",
    "seals": r"[0-9a-f]{32}\.json",
    "collected": r"[0-9a-f]{32}\.json",
    "registry": rf"{ID}/[0-9]{{8}}\.json",
    "tombstones": rf"{ID}\.json",
    "pins": f"{ID}/[^/]+",
    "gc": ID,
    "checkpoints": rf"[^/]+-{ID}/[0-9]{{12}}-[0-9a-f]{{8}}(\.json|/.+)",
}
"""By room the form of the rest of its keys."""
PATTERNS = {room: re.compile(shape, re.DOTALL) for room, shape in SHAPES.items()}


def is_stray(key: str) -> bool:
    """Whether a key has not the form of its room's keys, so that no store wrote it."""
    room, _, rest = key.partition("/")
    return room in PATTERNS and not PATTERNS[room].fullmatch(rest)


def own(driver: Driver, room: str, under: str = "") -> Iterator[tuple[str, ...]]:
    """Yield the parts of each key of a room, without the room and the ending .json; strays are skipped.

    With `under` only of the keys that begin with it there.
    """
    for key in driver.list(f"{room}/{under}"):
        if not is_stray(key):
            yield tuple(key.removesuffix(".json").split("/")[1:])


def strays(driver: Driver, rooms: Iterable[str] = tuple(PATTERNS)) -> list[str]:
    """Return the keys in these rooms, else in all, that no store wrote."""
    listed = chain.from_iterable(driver.list(f"{room}/") for room in rooms)
    return [key for key in listed if is_stray(key)]
