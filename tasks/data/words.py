"""Words of a text in any script."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_MARKS = "".join(
    re.escape(character)
    for character in map(chr, range(0x300, 0x20000))
    if unicodedata.category(character).startswith("M")
)
MARKS = f"{_MARKS}\u200c\u200d"
"""For a class of a regular expression: marks, as vowels of Hindi are, and joiners; `\\w` matches neither."""
_UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6"  # Lao
    "\u1000-\u102a\u103f\u1780-\u17b3"  # Burmese, Khmer
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # Chinese
)
"""Letters of scripts that put no spaces between words."""
_CHARACTER = rf"[{_UNSPACED}][{MARKS}]*"
_WORD = rf"[^\W{_UNSPACED}]+(?:[{MARKS}]+[^\W{_UNSPACED}]*)*|{_CHARACTER}"
_words = re.compile(_WORD).findall
_tokens = re.compile(rf"{_WORD}|[^\w\s]").findall
_characters = re.compile(_CHARACTER).findall
_unspaced = re.compile(rf"(?:{_CHARACTER}){{2,}}").findall
# The same of ASCII, in a fifth of the time.
_ascii_words = re.compile(r"\w+").findall
_ascii_tokens = re.compile(r"\w+|[^\w\s]").findall


def words(text: str) -> list[str]:
    """The words of a text in their order; of scripts without spaces between words its characters."""
    return _ascii_words(text) if text.isascii() else _words(text)


def words_and_marks(text: str) -> list[str]:
    """The words of a text and its punctuation, in their order."""
    return _ascii_tokens(text) if text.isascii() else _tokens(text)


def terms(text: str) -> list[str]:
    """The words of a text, then each two characters that stand together in scripts without spaces.

    Single characters of Chinese tell little of what a text is about.
    """
    found = words(text)
    if text.isascii():
        return found
    return found + ["".join(pair) for run in _unspaced(text) for pair in pairwise(_characters(run))]
