"""The elements of a JSON array, decoded as its file is read: memory is one element and one block."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

BLOCK_BYTES = 2**20
_BLANKS = " \t\n\r"
_DECODER = json.JSONDecoder()


class NoArray(ValueError):
    """The file holds something else; the message is how that begins."""


class TooLarge(ValueError):
    """An element is longer than it may be."""


def array_elements(file: IO[bytes], most: int) -> Iterator[Any]:
    """Each element, of at most so many characters, of the array in a UTF-8 file; none where it is blank.

    Raises:
        NoArray: the first character opens no array.
        json.JSONDecodeError: what stands after the elements so far is no JSON; its `doc` begins there.
        UnicodeDecodeError: the next block is no UTF-8.
        TooLarge: an element is longer.
        RecursionError: an element is nested too deep for Python.
    """
    text = _Text(file)
    if not (first := text.next_character()):
        return
    if first != "[":
        raise NoArray(text.rest())
    text.place += 1
    more = text.next_character() != "]"
    while more:
        text.next_character()
        yield text.element(most)
        if (mark := text.next_character()) not in {",", "]"}:
            raise json.JSONDecodeError("Expecting ',' delimiter", text.rest(), 0)
        if more := mark == ",":
            text.place += 1
    text.place += 1
    if text.next_character():
        raise json.JSONDecodeError("Extra data", text.rest(), 0)


class _Text:
    """A buffer of a file's decoded text; `place` is the first character in it that is not parsed yet."""

    def __init__(self, file: IO[bytes]) -> None:
        self.place = 0
        self._file, self._text, self._ended = file, "", False
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()

    def rest(self) -> str:
        """The part of the buffer that is not parsed yet."""
        return self._text[self.place :]

    def next_character(self) -> str:
        """The next character that is no white space, to which `place` moves; empty at the end of the file."""
        while True:
            while self.place < len(self._text) and self._text[self.place] in _BLANKS:
                self.place += 1
            if self.place < len(self._text):
                return self._text[self.place]
            if not self._read_on():
                return ""

    def element(self, most: int) -> Any:
        """The JSON value that begins at `place`, which moves to its end."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.place)
            except json.JSONDecodeError as error:
                if len(self._text) - self.place > most:
                    raise TooLarge from error
                if self._read_on():  # the block may end inside the element
                    continue
                raise json.JSONDecodeError(error.msg, self.rest(), 0) from error
            if end < len(self._text) or not self._read_on():  # a number may go on in the next block
                if end - self.place > most:
                    raise TooLarge
                self.place = end
                return value

    def _read_on(self) -> bool:
        """Read a block at least as long as the unparsed text, so that a long element takes linear time.

        Returns whether there was more.
        """
        if self._ended:
            return False
        block = self._file.read(max(BLOCK_BYTES, len(self._text) - self.place))
        self._ended = not block
        more = self._utf8.decode(block, final=self._ended)
        if block:
            self._text, self.place = self.rest() + more, 0
        return not self._ended
