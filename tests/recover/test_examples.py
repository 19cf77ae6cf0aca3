"""Windows of running text."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.tasks.recover.examples import windows


class Bytes:
    """A tokenizer of bytes, with or without a token in front of a text."""

    eos_token_id = 256

    def __init__(self, front: list[int]) -> None:
        self.front = front

    def __call__(self, texts: Any, add_special_tokens: bool, verbose: bool = True) -> dict[str, Any]:
        front = self.front if add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": front + list(texts.encode())}
        return {"input_ids": [front + list(text.encode()) for text in texts]}


@pytest.mark.parametrize("front", [[], [257]])
def test_windows_run_on_over_documents(front: list[int]) -> None:
    """Of three documents joined by blank lines every byte is in one window, and all but the last are full."""
    size = 4 + len(front)
    found = [row.response_ids for row in windows(Bytes(front), ["abcde", "f", "ghi"], size)]
    assert all(row[: len(front)] == front for row in found)
    parts = [bytes(row[len(front) :]).decode() for row in found]
    assert parts == ["abcd", "e\n\nf", "\n\ngh", "i"][: None if front else 3]
    assert {len(row) for row in found[:3]} == {size}


def test_one_byte_alone_is_a_window_only_behind_something() -> None:
    assert list(windows(Bytes([]), ["a"], 4)) == []
    assert [row.response_ids for row in windows(Bytes([257]), ["a"], 4)] == [[257, 97]]
    assert list(windows(Bytes([257]), [], 4)) == []
