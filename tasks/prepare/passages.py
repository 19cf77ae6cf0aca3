"""Passages: blocks under one heading put together, long ones parted between sentences or lines."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from resprout.tasks.prepare.blocks import Block, headings_above

Count = Callable[[str], int]
"""Tokens of a text."""
JOIN = "\n\n"
_VISIBLE = re.compile(r"\S")
CHARACTERS = 16
"""Characters of a token at most, in a look for how many fit: of a text with longer ones parts are shorter."""


@dataclass(frozen=True)
class Passage:
    """A passage: the headings that it stands under, its text, and its place in the source.

    `begin` and `end` are characters of the source, those of the whole block for sentences of one that does
    not stand there as it is, -1 where they are not known; `blocks` the numbers of the blocks that it is of.
    `parts` are the passages that it was put together of, each with its place in the text.
    """

    headings: tuple[str, ...]
    text: str
    begin: int
    end: int
    blocks: tuple[int, ...]
    parts: tuple[tuple[int, Passage], ...] = ()

    def behind(self, cut: int, source: str) -> Passage:
        """The passage without the first `cut` characters of its text."""
        at, part = [(0, self), *(one for one in self.parts if one[0] <= cut)][-1]
        begin = part.begin
        if begin >= 0 and source[begin : part.end] == part.text:
            begin += cut - at
        blocks = self.blocks[self.blocks.index(part.blocks[0]) :]
        return replace(
            self, text=self.text[cut:], begin=begin if self.begin >= 0 else -1, blocks=blocks, parts=()
        )


def sentences(text: str, language: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, without the white space between them, by sentencex."""
    from sentencex import get_sentence_boundaries

    found = list[tuple[int, int]]()
    for one in get_sentence_boundaries(language, text):
        whole = text[one["start_index"] : one["end_index"]]
        begin = one["start_index"] + len(whole) - len(whole.lstrip())
        end = one["start_index"] + len(whole.rstrip())
        # The mark of an image in Markdown ends no sentence.
        if found and found[-1][1] == begin and text[begin - 1 : begin + 1] == "![":
            begin = found.pop()[0]
        if begin < end:
            found.append((begin, end))
    return found


def passages(
    blocks: list[Block], source: str, most_tokens: int, count: Count, language: str
) -> Iterator[Passage]:
    """Passages of at most so many tokens.

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
    """A block, or where it is too long runs of its sentences, of code and tables of its lines."""
    known = block.begin >= 0 and block.end - block.begin == len(block.text)

    def piece(begin: int, end: int) -> Passage:
        at = (block.begin + begin, block.begin + end) if known else (block.begin, block.end)
        return Passage(headings, block.text[begin:end], *at, (block.number,))

    if count(block.text) <= most_tokens:
        yield piece(0, len(block.text))
        return
    begin, end = 0, 0
    by_line = block.kind in ("code", "table")
    spans = _lines(block.text) if by_line else sentences(block.text, language)
    for first, last in (one for span in spans for one in _fitting(block.text, *span, most_tokens, count)):
        if begin == end:
            begin = first
        elif count(block.text[begin:last]) > most_tokens:
            yield piece(begin, end)
            begin = first
        end = last
    if begin < end:
        yield piece(begin, end)


def _lines(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield begin, begin + len(line.rstrip())
        begin += len(line)


def _fitting(text: str, begin: int, end: int, most_tokens: int, count: Count) -> Iterator[tuple[int, int]]:
    """A span of a text, or where it is too long parts of it that end with a line, a word, or anywhere."""
    while begin < end:
        near = min(end, begin + CHARACTERS * most_tokens)
        if near == end and count(text[begin:end]) <= most_tokens:
            yield begin, end
            return
        longer = bisect_left(
            range(begin + 1, near + 1), True, key=lambda at: count(text[begin:at]) > most_tokens
        )
        last = begin + max(1, longer)
        if last < end:
            ends = (at for at in range(last, begin, -1) if text[at].isspace())
            line = text.rfind("\n", begin + 1, last + 1)
            last = line if line > 0 else next(ends, last)
        yield begin, last
        following = _VISIBLE.search(text, last, end)
        begin = following.start() if following else end


def _joined(parts: list[Passage], source: str) -> Passage:
    blocks = tuple(dict.fromkeys(number for one in parts for number in one.blocks))
    text, placed = parts[0].text, [(0, parts[0])]
    for before, one in pairwise(parts):
        text += between(before, one, source)
        placed.append((len(text), one))
        text += one.text
    places = [(one.begin, one.end) for one in parts]
    # A page's text may be found in another order than it is read in.
    known = places[0][0] >= 0 and places == sorted(places)
    begin, end = (places[0][0], places[-1][1]) if known else (-1, -1)
    return Passage(parts[0].headings, text, begin, end, blocks, tuple(placed))


def between(before: Passage, one: Passage, source: str) -> str:
    """The separator of two passages: the white space between them in `source`, else a blank line."""
    if 0 <= before.end <= one.begin:
        between = source[before.end : one.begin]
        # Of what was left out between the two, say a comment or tags, nothing comes back.
        return JOIN if between.strip() else between
    return JOIN
