"""Registries of methods: a name maps to `module:attribute`, imported only when it is asked for."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar, cast

from resprout.configs.errors import BadInput
from resprout.tasks.core.syntax import parse

T = TypeVar("T")

PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}")


@dataclass(frozen=True)
class Setting:
    """A setting of a method: its default, the values that it takes where its type lists them, its meaning."""

    default: Any
    allowed: tuple[Any, ...] = ()
    meaning: str = ""

    def fault(self, value: Any) -> str:
        """The expected values where `value` is none of them; empty where it fits."""
        if self.allowed:
            return "" if value in self.allowed else f"one of {', '.join(map(str, self.allowed))}"
        wanted = type(self.default)
        # A whole number serves as a real one; True is no number.
        fits = isinstance(value, bool) == (wanted is bool)
        fits = fits and isinstance(value, (int, float) if wanted is float else wanted)
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        return "" if fits else names.get(wanted, wanted.__name__)


@dataclass(frozen=True)
class Entry:
    """One method: where it lives, what it does in a line, the paper it comes from, and what it declares.

    `declared` are the literals that its class sets for all its instances, such as the units that a criterion
    can score, or those in `DECLARED` of a function's module; `settings` those fields of a dataclass that a
    config may set.
    """

    name: str
    target: str
    summary: str
    source: str = ""
    declared: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]


class Registry(Generic[T]):
    """The methods of one kind by name, found by their folder; an unknown name suggests and lists.

    Each module of `package` is a method of the module's name, or of the `name` that its class declares where
    no module can have it: its function `function`, else its one public class. The first line of the docstring
    of either is the summary, the papers that the module's docstring names are the source. Modules are read,
    not imported, so that listing them costs nothing.
    """

    def __init__(self, kind: str, package: str = "", function: str = "", separator: str = "_") -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        if package:
            self._discover(package, function, separator)

    def add(
        self,
        name: str,
        target: str,
        summary: str,
        source: str = "",
        declared: Mapping[str, Any] | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        """Register `target` ("module:attribute") under `name`; a name that is taken raises ValueError."""
        if name in self._entries:
            taken = self._entries[name].target
            raise ValueError(f"{self.kind} '{name}' is registered twice: {taken} and {target}")
        self._entries[name] = Entry(name, target, summary, source, declared or {}, settings or {})

    def settings(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of a method, `given` put over its defaults; unknown or unfit ones raise BadInput."""
        known = self.entry(name).settings
        for key, value in given.items():
            if key not in known:
                takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
                raise BadInput(f"{self.kind} '{name}' has no setting '{key}'; {takes}")
            if expected := known[key].fault(value):
                raise BadInput(f"{self.kind} '{name}' has {key}: {value!r}; give {expected}")
        return {key: given.get(key, setting.default) for key, setting in known.items()}

    def entry(self, name: str) -> Entry:
        """The entry called `name`; an unknown one raises BadInput with the nearest and all known names."""
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
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

    def _discover(self, package: str, function: str, separator: str) -> None:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(folder).glob("[a-z]*.py")):
                module = f"{package}.{path.stem}"
                tree = parse(path)
                (found,) = (node for node in tree.body if _is_method(node, function))
                papers = dict.fromkeys(PAPER.findall(ast.get_docstring(tree) or ""))
                summary = (ast.get_docstring(found) or "").partition("\n")[0].rstrip(".")
                declared, settings = (
                    _literals(found) if isinstance(found, ast.ClassDef) else (_declared(tree), {})
                )
                target = f"{module}:{found.name}"
                name = declared.pop("name", path.stem.replace("_", separator))
                self.add(name, target, summary, ", ".join(papers), declared, settings)


def _is_method(node: ast.stmt, function: str) -> TypeGuard[ast.ClassDef | ast.FunctionDef]:
    if function:
        return isinstance(node, ast.FunctionDef) and node.name == function
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def _docstring(node: ast.stmt | None) -> str:
    """The text of a string that stands alone, as behind a field; empty where there is none."""
    text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    return " ".join(text.split()) if isinstance(text, str) else ""


def _declared(tree: ast.Module) -> dict[str, Any]:
    """The literal mapping that a module calls DECLARED; empty where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["DECLARED"]:
            return dict(ast.literal_eval(node.value))
    return {}


def _literals(found: ast.ClassDef) -> tuple[dict[str, Any], dict[str, Setting]]:
    """Literals of a class by name: class variables, and defaults of fields."""
    declared: dict[str, Any] = {}
    settings: dict[str, Setting] = {}
    for node, after in zip_longest(found.body, found.body[1:]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
            continue
        value, kind = ast.literal_eval(node.value), node.annotation
        if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "ClassVar":
            declared[node.target.id] = value
            continue
        listed = isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal"
        allowed = ast.literal_eval(kind.slice) if listed and isinstance(kind, ast.Subscript) else ()
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        settings[node.target.id] = Setting(value, allowed, _docstring(after))
    return declared, settings
