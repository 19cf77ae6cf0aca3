"""The licence that a model's own files name."""

from __future__ import annotations

import re
from pathlib import Path

from resprout.tasks.models.gguf_header import read_header

CARD_BYTES = 64 * 1024


def card_licence(text: str) -> str | None:
    """`license:` of a model card's YAML front matter."""
    front = re.match(r"\A---\s*\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^licen[sc]e:\s*[\"']?([^\s\"'#]+)", front[1], re.MULTILINE)
    return found[1] if found else None


def local_licence(files: dict[str, Path]) -> str | None:
    """The licence in README.md's front matter or a GGUF file's metadata; None where neither names one."""
    card = files.get("README.md")
    if card is not None:
        with card.open("rb") as file:
            named = card_licence(file.read(CARD_BYTES).decode("utf-8", "replace"))
        if named:
            return named
    for path in files.values():
        if path.suffix == ".gguf":
            named = str(read_header(path)[0].get("general.license", ""))
            return named or None
    return None
