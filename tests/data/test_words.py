from __future__ import annotations

import random
import re
import unicodedata

import pytest

from resprout.tasks.data.words import terms, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 km, snake_case!", ["It", "s", "3", "5", "km", "snake_case"]),
        ("हिन्दी में पूछिए।", ["हिन्दी", "में", "पूछिए"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("السَّلَامُ عَلَيْكُم", ["السَّلَامُ", "عَلَيْكُم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("今天GPT-4好。", ["今", "天", "GPT", "4", "好"]),
        ("カメラ・テスト", ["カ", "メ", "ラ", "テ", "ス", "ト"]),
        ("ไม่รู้", ["ไ", "ม่", "รู้"]),
        ("", []),
        ("!?", []),
    ],
    ids=["English", "Hindi", "Tamil", "Arabic", "Korean", "Chinese", "Japanese", "Thai", "empty", "marks"],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_with_marks_are_whole_however_they_are_written(form: str) -> None:
    text = unicodedata.normalize(form, "Éléphant à Zürich, Việt Nam")
    assert [unicodedata.normalize("NFC", word) for word in words(text)] == [
        "Éléphant", "à", "Zürich", "Việt", "Nam",
    ]  # fmt: skip


def test_without_marks_words_are_those_of_pythons_pattern() -> None:
    letters = [*"abcXYZ019_ éüßñøčžабвгдαβγδאבג가나다", *" .,;:!?-'\"\n\t()"]
    drawn = random.Random(5)
    for _ in range(200):
        text = "".join(drawn.choices(letters, k=60))
        assert words(text) == re.findall(r"\w+", text)


def test_terms_add_pairs_where_characters_are_not_spaced() -> None:
    assert terms("猫が好き, cat好") == ["猫", "が", "好", "き", "cat", "好", "猫が", "が好", "好き"]
    assert terms("a cat sat") == ["a", "cat", "sat"]
