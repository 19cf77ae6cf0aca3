"""Search for rows of a data set in the text files that were made from it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.stored_json import parse_json

ROWS = ".jsonl"
"""Ending of the files that hold rows."""
TEXT = {ROWS, ".json", ".md", ".html", ".yaml", ".yml", ".txt", ".csv", ".tsv", ".patch", ".log"}
"""Endings of the files that are searched. Weights, tokens and scores hold no text."""
LEAST_CHARS = 12
"""A shorter value of a row does not identify it."""
MOST_CHARS = 100
"""Reports show the beginning of a longer one."""
Files = Callable[[], Iterable[tuple[str, Iterable[bytes]]]]
"""Opens some files: the path of each, and its lines."""


class Fingerprints:
    """Texts and ids that identify rows: texts may be part of longer ones, ids are whole JSON values.

    A short id counts only under a key that says that it is one: any number or word may look like it.
    """

    def __init__(self, texts: Iterable[str] = (), ids: Iterable[str] = ()) -> None:
        self.texts = frozenset(texts)
        self.ids = frozenset(ids)
        self._begin: dict[str, list[str]] = {}
        for text in self.texts:
            self._begin.setdefault(text[:LEAST_CHARS], []).append(text)

    def __bool__(self) -> bool:
        return bool(self.texts or self.ids)

    def match(self, path: str, lines: Iterable[bytes]) -> bool:
        """Whether any of them is in a file, whatever its line breaks and escapes."""
        if path.endswith((".json", ROWS)):
            return any(self._matches(*one) for value in _parsed(path, lines) for one in _values(value))
        return self._within(_plain(html.unescape(b"".join(lines).decode(errors="replace"))))

    def _matches(self, text: str, is_id: bool) -> bool:
        text = _plain(text)
        return (text in self.ids and (is_id or len(text) >= LEAST_CHARS)) or self._within(text)

    def _within(self, text: str) -> bool:
        """Walk over the text once, however many texts are searched for."""
        if not self._begin:
            return False
        for start in range(len(text) - LEAST_CHARS + 1):
            for one in self._begin.get(text[start : start + LEAST_CHARS], ()):
                if text.startswith(one, start):
                    return True
        return False


def is_text(path: str) -> bool:
    """Whether a file of this name is searched."""
    return PurePosixPath(path).suffix.lower() in TEXT


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines, with their ends, of a file that comes in pieces."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def fingerprints(files: Files, row: str | None) -> Fingerprints:
    """Collect the fingerprints of the row with this id, or of those with this text, or of all rows (None).

    Of a row that is its id, and each text that no other row has, by its beginning where that is its alone.

    Raises:
        BadInput: `row` is no row's id, and too short for a text.
    """
    chosen = _chosen(files, row)
    texts = {text for one in chosen.values() for text in _long(one)}
    wanted = texts | {text[:MOST_CHARS] for text in texts}
    often: Counter[str] = Counter()
    for identity, one in _rows(files):
        # Of one row, or of those with one text, only other rows matter; of all rows, each matters to each.
        if row is None or identity not in chosen:
            own = set(_long(one))
            often.update(wanted & (own | {text[:MOST_CHARS] for text in own}))
    most = 1 if row is None else 0
    found = {text[:MOST_CHARS] if often[text[:MOST_CHARS]] <= most else text for text in texts}
    found = {text for text in found if often[text] <= most}
    ids = {str(one["id"]) for one in chosen.values() if one.get("id") is not None}
    if row is not None and row not in ids:
        found.add(_plain(row))
    return Fingerprints(found, ids)


def _chosen(files: Files, row: str | None) -> dict[str, dict[str, Any]]:
    """Return the rows that are meant, by their hash."""
    if row is None:
        return dict(_rows(files))
    named = {identity: one for identity, one in _rows(files) if str(one.get("id")) == row}
    if named:
        return named
    text = _plain(row)
    if len(text) < LEAST_CHARS:
        raise BadInput(
            f"'{row}' is no id of a row, and too short to know a row by; give a row's id, or at least "
            f"{LEAST_CHARS} characters that stand in it"
        )
    return {
        identity: one
        for identity, one in _rows(files)
        if any(text in _plain(value) for value, _ in _values(one, keys=False))
    }


def _rows(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row once, however many files have it, with its hash."""
    seen: set[str] = set()
    for path, lines in files():
        if path.endswith(ROWS):
            for one in _parsed(path, lines):
                if isinstance(one, dict) and (identity := sha256_hex(_bytes(one))) not in seen:
                    seen.add(identity)
                    yield identity, one


def _bytes(row: dict[str, Any]) -> bytes:
    try:
        return canonical_json(row)
    except ValueError:
        return repr(row).encode()


def _long(row: dict[str, Any]) -> Iterator[str]:
    """Yield the texts of a row that may identify it."""
    return (text for value, _ in _values(row, keys=False) if len(text := _plain(value)) >= LEAST_CHARS)


def _parsed(path: str, lines: Iterable[bytes]) -> Iterator[Any]:
    """Yield each line of a JSONL file, or the whole of a JSON file; as text where it is neither."""
    for piece in lines if path.endswith(ROWS) else [b"".join(lines)]:
        if piece.strip():
            try:
                yield parse_json(piece, path)
            except ValueError:
                yield piece.decode(errors="replace")


def _values(value: Any, key: str = "", *, keys: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield all texts and whole numbers, keys too, and whether the key of each says that it is an id."""
    if isinstance(value, dict):
        for name, one in value.items():
            if keys:
                yield str(name), False
            yield from _values(one, str(name).lower(), keys=keys)
    elif isinstance(value, list):
        for one in value:
            yield from _values(one, key, keys=keys)
    elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        yield str(value), key in ("id", "ids") or key.endswith(("_id", "_ids"))


def _plain(text: str) -> str:
    return " ".join(text.split())
