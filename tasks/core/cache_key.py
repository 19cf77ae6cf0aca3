"""Identity of the code that a stage runs: a hash over the definitions that its bytes depend on, in any room.

A definition is a function, a class or a constant at the top of a module. From a stage's function and the
modules of the methods that its config selects, every name is followed to where it is defined: through
imports, inside functions too, and through annotations, since what a value can do stands in its class. So an
edit re-runs the stages that reach what was edited, and a new section of the config re-runs none. Besides:

- statements of a module that define nothing count as soon as anything of it does, say where a child process
  begins; a module that is named in a string or used as a value counts as a whole, such as such a process's;
- a definition that names a template (`.j2`) has all templates of its folder, which may include each other;
  one that uses `__path__` has all modules of its package, which it finds there;
- comments, docstrings and formatting do not count: the hash is over the syntax tree;
- `ORCHESTRATION` and registries are not entered: they decide when and where a stage runs, not what it
  writes. A registry names methods as strings, so only the selected ones count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resprout.tasks.core.syntax import parse

PROJECT = Path(__file__).resolve().parents[2]
MODULE = re.compile(r"resprout(\.\w+)+")
SHORT = 12
"""Hexadecimal digits of a file's hash."""
ORCHESTRATION = {
    "resprout.tasks.core.cache_key": "computes these hashes",
    "resprout.tasks.core.methods": "finds methods by name; the selected ones are given",
    "resprout.tasks.core.stage": "calls a stage's function; what it gives it is in tasks.core.job",
    "resprout.tasks.core.run": "holds what the stages of one run share: store, tracker, display",
    "resprout.tasks.core.termination": "says when a stage has to save, and not what it writes",
    "resprout.configs.errors": "names kinds of failure, and a stage that fails leaves no bytes",
    "resprout.configs.infrastructure:StoreConfig": "reaches a bucket; what is fetched is pinned by hash",
    "resprout.infra.identity:install_command": "says how an extra that is missing is installed",
    "resprout.infra.store.filesystem:disk_errors": "puts a full disk into words",
    "resprout.infra.store.stored_json": "refuses damaged JSON; what passes is what json reads",
    "resprout.infra.store.filesystem:private_folder": "makes and removes scratch folders",
}
"""Modules and definitions that are not followed, each with the reason."""


def code_hash(names: Iterable[str]) -> str:
    """sha256 over the syntax trees of all that is reached from `names`, and the templates that it renders.

    A name is that of a module, or of a definition in one as "module:name".
    """
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(reached(names).items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_hashes(names: Iterable[str]) -> dict[str, str]:
    """First digits of a sha256 over what is reached of each file, by the file's path in the project.

    No part of a key: they tell people which files an edit that re-runs a stage was made in.
    """
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for name, digest in sorted(reached(names).items()):
        module, colon, _ = name.partition(":")
        lines[_file(module) if colon else name].append(f"{name} {digest}")
    return {
        file: hashlib.sha256("\n".join(found).encode()).hexdigest()[:SHORT] for file, found in lines.items()
    }


def reached(names: Iterable[str]) -> dict[str, str]:
    """sha256 of each definition and template reached from `names`, by "module:name"; "module:" is the rest.

    Raises:
        ModuleNotFoundError: no source file for a name.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    # Looked at on disk once a module, not once a definition.
    source = functools.cache(_source)
    todo = list(names)
    while todo:
        name = todo.pop()
        module, _, wanted = name.partition(":")
        if name in seen or {name, module} & ORCHESTRATION.keys() or module.endswith(".registry"):
            continue
        seen.add(name)
        here = source(module)
        if wanted in here.imports and wanted not in here.definitions:
            todo.append(here.imports[wanted])
            continue
        # A name that no statement alone defines, as by unpacking, may be made by any of them.
        known = here.definitions.keys()
        for one in {"", wanted} & known if wanted in known else known:
            definition = here.definition(one)
            found[f"{module}:{one}"] = definition.sha256
            todo.extend(definition.follows - seen)
            if definition.renders:
                found.update(_templates(here.path))
    return found


def module_path(module: str) -> Path | None:
    """Source file of a module of this project, None where there is no such module; imports nothing."""
    package, *parts = module.split(".")
    if package != "resprout" or not parts:
        return None
    base = PROJECT.joinpath(*parts)
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _file(module: str) -> str:
    path = module_path(module)
    ending = "/__init__.py" if path is not None and path.name == "__init__.py" else ".py"
    return "/".join(module.split(".")[1:]) + ending


@dataclass(frozen=True)
class Definition:
    """A definition: its syntax tree's hash, the names that it refers to, whether it names a template."""

    sha256: str
    follows: frozenset[str]
    renders: bool


@dataclass(frozen=True)
class ParsedModule:
    """A parsed module: the statements behind each of its names, "" for those that define nothing."""

    module: str
    path: Path
    definitions: Mapping[str, list[ast.stmt]]
    imports: Mapping[str, str]
    """Targets of imported names: a module, or "module:name"."""
    _known: dict[str, Definition] = field(default_factory=dict)

    def definition(self, name: str) -> Definition:
        """The definition of one of the module's names; read once."""
        if name not in self._known:
            nodes = [node for statement in self.definitions[name] for node in _walk(statement)]
            trees = "\n".join(ast.dump(statement) for statement in self.definitions[name])
            texts = {
                node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            self._known[name] = Definition(
                hashlib.sha256(trees.encode()).hexdigest(),
                frozenset([*self._references(nodes), *filter(_is_module, texts)]),
                any(text.endswith(".j2") for text in texts),
            )
        return self._known[name]

    def _references(self, nodes: Sequence[ast.AST]) -> Iterator[str]:
        imports = {**self.imports, **_imports(nodes)}
        attributes: set[ast.expr] = set()
        # From the outside in: an attribute comes before the name that it is of.
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = imports.get(node.value.id, "")
                if target and ":" not in target and _has(target, node.attr):
                    attributes.add(node.value)
                    yield f"{target}:{node.attr}"
            elif isinstance(node, ast.Name) and node not in attributes:
                if node.id in imports:
                    yield imports[node.id]
                elif node.id in self.definitions:
                    yield f"{self.module}:{node.id}"
                elif node.id == "__path__":
                    yield from (f"{self.module}.{file.stem}" for file in self.path.parent.glob("[a-z]*.py"))


def _source(module: str) -> ParsedModule:
    path = module_path(module)
    if path is None:
        raise ModuleNotFoundError(f"no source file for {module}; it cannot enter a cache key")
    stat = path.stat()
    return _parse(module, path, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size))


def _has(module: str, name: str) -> bool:
    """Whether a module defines or imports this name."""
    source = _source(module)
    return name in source.definitions or name in source.imports


@functools.cache
def _parse(module: str, path: Path, _stamp: tuple[int, ...]) -> ParsedModule:
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, str] = {}
    for statement in parse(path).body:
        if isinstance(statement, ast.FunctionDef):
            statement.decorator_list = [one for one in statement.decorator_list if not _declares(one)]
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            imports |= _imports(_walk(statement))
        if not _only_imports(statement) and not _is_text(statement):
            for name in _names(statement) or [""]:
                definitions.setdefault(name, []).append(statement)
    return ParsedModule(module, path, definitions, imports)


def _walk(statement: ast.stmt) -> list[ast.AST]:
    """The nodes of a syntax tree from the outside in, docstrings taken out of it."""
    nodes: list[ast.AST] = [statement]
    for node in nodes:
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Any bare string statement goes: a docstring, or the text below an attribute that documents it.
            node.body = [child for child in body if not _is_text(child)]  # type: ignore[attr-defined]
        nodes.extend(ast.iter_child_nodes(node))
    return nodes


def _declares(decorator: ast.expr) -> bool:
    """Whether a decorator declares a stage: what of that decides bytes is in the key by itself."""
    called = decorator.func if isinstance(decorator, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "stage"


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _names(statement: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _only_imports(statement: ast.stmt) -> bool:
    """Whether a statement imports and does nothing else, also where only type checkers do."""
    if isinstance(statement, ast.If) and not statement.orelse:
        return all(_only_imports(one) for one in statement.body)
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _imports(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Names that are imported from this project, with what they stand for."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resprout."):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                stands_for = inner if _is_module(inner) else f"{node.module}:{alias.name}"
                found[alias.asname or alias.name] = stands_for
    return found


@functools.cache
def _is_module(text: str) -> bool:
    return MODULE.fullmatch(text) is not None and module_path(text) is not None


def _templates(path: Path) -> dict[str, str]:
    """sha256 of each template beside a module, by a name that no definition has."""
    room = "/".join(path.parent.parts[-2:])
    return {
        f"{room}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.parent.glob("*.j2")
    }
