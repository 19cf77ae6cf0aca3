"""Passages: blocks under one heading put together, long ones parted between sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from resprout.tasks.prepare.blocks import Block, headings_above

Count = Callable[[str], int]
"""Tokens of a text."""
JOIN = "\n\n"


@dataclass(frozen=True)
class Passage:
    """A passage: the headings that it stands under, its text, and its place in the source.

    `begin` and `end` are characters of the source, those of the whole block for sentences of one that does
    not stand there as it is, -1 where they are not known; `blocks` the numbers of the blocks that it is of.
    """

    headings: tuple[str, ...]
    text: str
    begin: int
    end: int
    blocks: tuple[int, ...]


def sentences(text: str, language: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, without the white space between them, by sentencex."""
    from sentencex import get_sentence_boundaries

    found = []
    for one in get_sentence_boundaries(language, text):
        whole = text[one["start_index"] : one["end_index"]]
        begin = one["start_index"] + len(whole) - len(whole.lstrip())
        end = one["start_index"] + len(whole.rstrip())
        if begin < end:
            found.append((begin, end))
    return found


def passages(
    blocks: list[Block], source: str, most_tokens: int, count: Count, language: str
) -> Iterator[Passage]:
    """Passages of at most so many tokens, but for single sentences that are longer.

    A passage ends where its heading's part does, or where another block or sentence would not fit; between
    its blocks stands what does in `source`, where that is white space alone.
    """
    parts, parent = list[Passage](), None
    for block in blocks:
        if parts and (block.kind == "heading" or block.parent != parent):
            yield _joined(parts, source)
            parts = []
        if block.kind == "heading":
            continue
        parent = block.parent
        for piece in _pieces(block, headings_above(blocks, block), most_tokens, count, language):
            # Parts of one block do not fit into one: that is why they are parts.
            if parts and (
                parts[-1].blocks == piece.blocks or count(_joined([*parts, piece], source).text) > most_tokens
            ):
                yield _joined(parts, source)
                parts = []
            parts.append(piece)
    if parts:
        yield _joined(parts, source)


def _pieces(
    block: Block, headings: tuple[str, ...], most_tokens: int, count: Count, language: str
) -> Iterator[Passage]:
    """A block, or where it is too long runs of its sentences."""
    known = block.begin >= 0 and block.end - block.begin == len(block.text)

    def piece(begin: int, end: int) -> Passage:
        at = (block.begin + begin, block.begin + end) if known else (block.begin, block.end)
        return Passage(headings, block.text[begin:end], *at, (block.number,))

    if count(block.text) <= most_tokens:
        yield piece(0, len(block.text))
        return
    begin, end = 0, 0
    for first, last in sentences(block.text, language):
        if begin == end:
            begin = first
        elif count(block.text[begin:last]) > most_tokens:
            yield piece(begin, end)
            begin = first
        end = last
    if begin < end:
        yield piece(begin, end)


def _joined(parts: list[Passage], source: str) -> Passage:
    blocks = tuple(dict.fromkeys(number for one in parts for number in one.blocks))
    text = parts[0].text
    for before, one in pairwise(parts):
        text += _between(before, one, source) + one.text
    places = [(one.begin, one.end) for one in parts]
    # A page's text may be found in another order than it is read in.
    known = places[0][0] >= 0 and places == sorted(places)
    begin, end = (places[0][0], places[-1][1]) if known else (-1, -1)
    return Passage(parts[0].headings, text, begin, end, blocks)


def _between(before: Passage, one: Passage, source: str) -> str:
    if 0 <= before.end <= one.begin:
        between = source[before.end : one.begin]
        # Of what was left out between the two, say a comment or tags, nothing comes back.
        return JOIN if between.strip() else between
    return JOIN
