"""Parse a module's source, one thread at a time.

CPython 3.11 counts the depth of a tree for all threads together: of two that parse at once one may raise
SystemError, "AST constructor recursion depth mismatch".
"""

from __future__ import annotations

import ast
import threading
from pathlib import Path

_LOCK = threading.Lock()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    with _LOCK:
        return ast.parse(path.read_bytes())
