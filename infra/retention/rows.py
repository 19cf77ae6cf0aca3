"""Finds a row of a data set again in the text files that were made from it."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

TEXT = {".jsonl", ".json", ".md", ".html", ".yaml", ".yml", ".txt", ".csv", ".tsv", ".patch", ".log"}
"""Endings of the files that are searched. Weights, tokens and scores hold no text."""
LEAST_CHARS = 12
"""A shorter value of a row is no sign of it."""
MOST_CHARS = 100
"""Reports show the beginning of a longer one."""


def is_text(path: str) -> bool:
    """Whether a file of this name is searched."""
    return PurePosixPath(path).suffix.lower() in TEXT


def signs(files: Iterable[tuple[str, bytes]], row: str) -> set[str]:
    """What to look for: `row` itself, and of each row that has it as id or in a text what is its alone."""
    found = {_plain(row)}
    for path, data in files:
        if not path.endswith(".jsonl"):
            continue
        rows = [one for one in _parsed(path, data) if isinstance(one, dict)]
        often = Counter(text for one in rows for text in {_plain(text) for text in _strings(one)})
        for one in rows:
            if str(one.get("id")) == row or any(_plain(row) in _plain(text) for text in _strings(one)):
                texts = {_plain(text) for text in _strings(one)}
                found |= {text for text in texts if often[text] == 1 and len(text) >= LEAST_CHARS}
    return {text[:MOST_CHARS] for text in found if text}


def holds(path: str, data: bytes, wanted: Iterable[str]) -> bool:
    """Whether any of the signs stands in a file, whatever its line breaks and escapes."""
    text = "\n".join(_plain(one) for one in _texts(path, data))
    return any(sign in text for sign in wanted)


def _texts(path: str, data: bytes) -> Iterator[str]:
    if path.endswith((".json", ".jsonl")):
        for one in _parsed(path, data):
            yield from _strings(one)
    else:
        yield html.unescape(data.decode(errors="replace"))


def _parsed(path: str, data: bytes) -> Iterator[Any]:
    """Each line of a JSONL file, or the whole of a JSON file; as text where it is neither."""
    for piece in data.split(b"\n") if path.endswith(".jsonl") else [data]:
        if piece.strip():
            try:
                yield json.loads(piece)
            except ValueError:
                yield piece.decode(errors="replace")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _plain(text: str) -> str:
    return " ".join(text.split())
