"""Registries of methods: a name maps to `module:attribute`, imported only when it is asked for."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from resprout.configs.errors import BadInput

T = TypeVar("T")

PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}")


@dataclass(frozen=True)
class Entry:
    """One method: where it lives, what it does in a line, the paper it comes from, and what it declares.

    `declared` are the literals that its class sets, such as the units that a criterion can score.
    """

    name: str
    target: str
    summary: str
    source: str = ""
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]


class Registry(Generic[T]):
    """The methods of one kind by name; duplicates are refused, an unknown name suggests and lists.

    With a `package`, each of its modules is a method of the module's name: its one public class, the first
    line of whose docstring is the summary, and the papers that the module's docstring names. They are read,
    not imported, so that listing them costs nothing.
    """

    def __init__(self, kind: str, package: str = "") -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        if package:
            self._discover(package)

    def add(self, name: str, target: str, summary: str, source: str = "", **declared: Any) -> None:
        """Register `target` ("module:attribute") under `name`; a name that is taken raises ValueError."""
        if name in self._entries:
            taken = self._entries[name].target
            raise ValueError(f"{self.kind} '{name}' is registered twice: {taken} and {target}")
        self._entries[name] = Entry(name, target, summary, source, declared)

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

    def _discover(self, package: str) -> None:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(folder).glob("[a-z]*.py")):
                module = f"{package}.{path.stem}"
                tree = ast.parse(path.read_text(encoding="utf-8"))
                (found,) = (
                    node
                    for node in tree.body
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
                )
                papers = dict.fromkeys(PAPER.findall(ast.get_docstring(tree) or ""))
                summary = (ast.get_docstring(found) or "").partition("\n")[0].rstrip(".")
                self.add(
                    path.stem, f"{module}:{found.name}", summary, ", ".join(papers), **dict(_literals(found))
                )


def _literals(found: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """What a class sets to literals, by name."""
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            try:
                yield node.target.id, ast.literal_eval(node.value)
            except ValueError:
                continue
