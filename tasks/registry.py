"""Registries of methods: a name maps to `module:attribute`, imported only when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from resprout.configs.errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One method: where it lives, what it does in a line, and the paper it comes from."""

    name: str
    target: str
    summary: str
    source: str = ""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]


class Registry(Generic[T]):
    """The methods of one kind by name; duplicates are refused, an unknown name suggests and lists."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, target: str, summary: str, source: str = "") -> None:
        """Register `target` ("module:attribute") under `name`; a name that is taken raises ValueError."""
        if name in self._entries:
            taken = self._entries[name].target
            raise ValueError(f"{self.kind} '{name}' is registered twice: {taken} and {target}")
        self._entries[name] = Entry(name, target, summary, source)

    def entry(self, name: str) -> Entry:
        """The entry called `name`; an unknown one raises BadInput with the nearest and all known names."""
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise BadInput(f"unknown {self.kind} '{name}'{hint} Known: {', '.join(sorted(self._entries))}.")
        return self._entries[name]

    def get(self, name: str) -> T:
        """The registered object, imported now."""
        module, _, attribute = self.entry(name).target.partition(":")
        loaded: Any = importlib.import_module(module)
        return cast(T, getattr(loaded, attribute))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries
