"""A document as a tree of blocks: headings with what stands under them, each with its place in the source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["heading", "paragraph", "item", "table", "code", "quote"]


@dataclass(frozen=True)
class Part:
    """A block before it has its place in the tree; `level` is that of a heading, 1 to 6, else 0.

    `begin` and `end` are characters of the source, -1 where its text does not stand there as it is.
    """

    kind: Kind
    text: str
    begin: int
    end: int
    level: int = 0


@dataclass(frozen=True)
class Block(Part):
    """A block: its number in the document, and that of the heading that it stands under."""

    number: int = 0
    parent: int | None = None


def tree(parts: Iterable[Part]) -> list[Block]:
    """The parts in their order, each under the last heading of a higher level."""
    found, open_ = list[Block](), list[Block]()
    for part in parts:
        if part.kind == "heading":
            open_ = [one for one in open_ if one.level < part.level]
        parent = open_[-1].number if open_ else None
        block = Block(part.kind, part.text, part.begin, part.end, part.level, len(found), parent)
        found.append(block)
        if part.kind == "heading":
            open_.append(block)
    return found


def headings_above(blocks: list[Block], block: Block) -> tuple[str, ...]:
    """Texts of the headings that a block stands under, the highest first."""
    found, parent = list[str](), block.parent
    while parent is not None:
        found.append(blocks[parent].text)
        parent = blocks[parent].parent
    return tuple(reversed(found))


def text_parts(source: str) -> list[Part]:
    """Paragraphs of plain text, between blank lines."""
    found, begin = list[Part](), 0
    for end, after in [*(gap.span() for gap in re.finditer(r"\n\s*\n", source)), (len(source), len(source))]:
        begin += len(source[begin:end]) - len(source[begin:end].lstrip())
        if text := source[begin:end].strip():
            found.append(Part("paragraph", text, begin, begin + len(text)))
        begin = after
    return found
