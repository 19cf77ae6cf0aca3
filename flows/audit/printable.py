"""What records, tags and configs say as a terminal may be shown it, or a program read it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: object) -> str:
    """The text with rich's markup escaped, and what is not printable (terminals obey it) made visible."""
    return escape(
        "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in str(text))
    )


def json_line(data: Any) -> str:
    """Sorted on one line; null for infinities and NaN, which Python would write but JSON does not know."""
    return json.dumps(_finite(data), sort_keys=True, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def console(width: int = 1000) -> Console:
    """The terminal; in a pipe lines of `width`, where nobody sees one and nothing should be folded."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=width)
