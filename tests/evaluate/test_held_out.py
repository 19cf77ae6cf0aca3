"""The text that tokens stand for, counted by hand in bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import PerplexityConfig
from resprout.tasks.evaluate.held_out import held_out
from resprout.tasks.evaluate.perplexity import Score
from resprout.tasks.models.load import load_tokenizer
from tiny_models import write_byte_tokenizer, write_tiny_tokenizer


def read(folder: Path, texts: list[str], **changes: Any) -> Any:
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = {"name": "words", "text": [{"source": "text.jsonl"}], "window_tokens": 8, "join": "\n", **changes}
    return held_out(folder, load_tokenizer(folder), PerplexityConfig.model_validate(given))


def test_bytes_of_words_up_to_the_last_token(tmp_path: Path) -> None:
    """Eight words of two letters with seven gaps between them, and what follows the last is no part of it."""
    write_tiny_tokenizer(tmp_path)
    found = read(tmp_path, ["w4 w5 w6 w7 w8", "w9 w4 w5 w6 w7"], limit_tokens=8)
    assert (len(found.ids), found.text_bytes) == (8, 8 * 2 + 7)


def test_a_letter_of_two_bytes_counts_as_two(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    found = read(tmp_path, ["ééééé"])
    assert (len(found.ids), found.text_bytes) == (10, 10)


def test_bits_per_byte_by_hand() -> None:
    """Four tokens of two bytes each, each with one bit in four: 4 * 2 bits over 8 bytes."""
    assert Score(4 * math.log(4), 4).bits_per_byte(2.0) == pytest.approx(1.0)
