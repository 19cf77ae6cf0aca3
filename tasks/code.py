"""Identity of the code that a stage runs: a hash over the in-project modules it reaches.

Modules are found statically: from a stage's door and the methods its config selects, every `resprout.tasks`
import is followed, inside functions too. Registries name methods as strings, so a method that is not selected
is not reached. Comments, docstrings and formatting do not count (the hash is over the syntax tree), nor does
anything in infra, configs or flows: settings reach a stage as values, which its key holds already. Templates
(*.j2) count with every module of their folder.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = "resprout"
SCIENCE = "resprout.tasks."
TASKS = Path(__file__).resolve().parent
ORCHESTRATION = {f"resprout.tasks.{name}" for name in ("stage", "run", "code", "job", "progress", "track")}


def code_hash(modules: Iterable[str]) -> str:
    """sha256 over the syntax trees of all science modules reachable from `modules`, and their templates."""
    reached: dict[str, str] = {}
    todo = sorted(set(modules))
    while todo:
        module = todo.pop()
        # A registry only names methods; the selected ones are in `modules`, and a new one must not re-run the
        # others.
        if module in reached or module in ORCHESTRATION or module.endswith(".registry"):
            continue
        digest, imports = _digest_and_imports(module)
        reached[module] = digest
        reached.update(_templates(module))
        todo.extend(name for name in imports if name.startswith(SCIENCE) and name not in reached)
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(reached.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def module_path(module: str) -> Path | None:
    """Source file of a module below resprout.tasks, None where there is no such module; imports nothing."""
    if not module.startswith(SCIENCE):
        return None
    base = TASKS.joinpath(*module.removeprefix(SCIENCE).split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _digest_and_imports(module: str) -> tuple[str, tuple[str, ...]]:
    path = module_path(module)
    if path is None:
        raise ModuleNotFoundError(f"no source file for {module}; it cannot enter a cache key")
    stat = path.stat()
    return _parse(module, path, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size))


def _templates(module: str) -> dict[str, str]:
    """sha256 of each template beside the module, by a name that no module has."""
    path = module_path(module)
    package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
    files = path.parent.glob("*.j2") if path else ()
    return {f"{package}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@functools.cache
def _parse(module: str, path: Path, _stamp: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_bytes())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *([node.module] if node.module else [])])
            if not base.startswith(ROOT):
                continue
            imports.add(base)
            imports.update(f"{base}.{alias.name}" for alias in node.names)
    _strip_docstrings(tree)
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    in_project = tuple(sorted(name for name in imports if name.startswith(SCIENCE) and module_path(name)))
    return digest, in_project


def _strip_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        # Any bare string statement goes: a docstring, or the text below an attribute that documents it.
        node.body = [  # type: ignore[attr-defined]
            child
            for child in body
            if not (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            )
        ]
