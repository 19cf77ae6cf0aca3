"""Text from records, tags and configs as a terminal may be shown it."""

from __future__ import annotations

from rich.markup import escape


def printable(text: object) -> str:
    """The text with rich's markup escaped, and what is not printable (terminals obey it) made visible."""
    return escape(
        "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in str(text))
    )
