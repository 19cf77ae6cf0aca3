"""Rows in flat arrays read as the rows that were given."""

from __future__ import annotations

import pytest

from resprout.tasks.data.encodings import Encodings
from resprout.tasks.data.template import Encoded

ROWS = [Encoded([1, 2], [3]), Encoded([], [4, 5]), Encoded([6], [])]


def test_rows_come_back_as_they_were_given() -> None:
    held = Encodings.of(iter(ROWS))
    assert list(held) == ROWS
    assert (held[-1], held[1:]) == (ROWS[2], ROWS[1:])
    assert held.tokens(0).tolist() == [1, 2, 3]
    assert (held.lengths.tolist(), held.ends.tolist(), held.prompts.tolist()) == (
        [3, 2, 1],
        [3, 5, 6],
        [2, 0, 1],
    )


def test_there_may_be_none_and_there_is_none_behind_the_last() -> None:
    assert list(Encodings.of([])) == []
    with pytest.raises(IndexError):
        Encodings.of(ROWS)[3]
