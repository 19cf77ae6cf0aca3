from __future__ import annotations

import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.tasks.data.read import read_rows

SUMS: dict[str, Any] = {
    "skill": "sums",
    "rows": 400,
    "rules": {
        "digit": {"range": [1, 4]},
        "who": ["Ann", {"text": "Ben", "weight": 3}],
        "what": ["pens", "<colour> pens"],
        "colour": ["red", "very <colour>"],
    },
    "draw": {"a": "digit", "b": "digit", "who": "who", "what": "what"},
    "columns": {
        "instruction": "{{ who }}: {{ a }} {{ what }} and {{ b }}?",
        "output": "{{ a | int + b | int }}",
    },
}


class Written(yaml.SafeDumper):
    """A dumper that repeats values instead of referring to them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def rows(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    path = folder / "grammar.yaml"
    path.write_text(yaml.dump({**SUMS, **changes}, Dumper=Written))
    return [row for _, row in read_rows(path, "grammar")]


def test_labels_follow_from_what_was_drawn(tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert len(found) == 400
    for row in found:
        who, rest = row["instruction"].split(": ")
        first, *what, last = rest.removesuffix("?").replace(" and", "").split()
        assert who in ("Ann", "Ben")
        assert what[-1] == "pens"
        assert int(row["output"]) == int(first) + int(last)
        assert row["category"] == "sums"


def test_productions_are_drawn_by_their_weights(tmp_path: Path) -> None:
    """Ben three times as often as Ann; `very` once, twice, ... with half the probability each time."""
    found = rows(tmp_path, rows=4000)
    names = Counter(row["instruction"].split(":")[0] for row in found)
    assert names["Ben"] / 4000 == pytest.approx(0.75, abs=0.03)
    very = Counter(row["instruction"].count("very") for row in found if "red" in row["instruction"])
    coloured = sum(very.values())
    assert coloured / 4000 == pytest.approx(0.5, abs=0.03)
    assert [very[count] / coloured for count in range(3)] == pytest.approx([0.5, 0.25, 0.125], abs=0.04)


def test_the_seed_makes_the_rows(tmp_path: Path) -> None:
    assert rows(tmp_path) == rows(tmp_path)
    assert rows(tmp_path) != rows(tmp_path, seed=18)
    assert rows(tmp_path, rows=10) == rows(tmp_path)[:10]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rules": {"digit": {"range": [4, 1]}}}, "which holds no number; give"),
        ({"draw": {"a": "letter"}}, "symbol letter has no rule; rules are colour, digit, what, who"),
        ({"rules": {**SUMS["rules"], "what": []}}, "the rule of what has no production"),
        (
            {"rules": {**SUMS["rules"], "what": ["<what> <what>"]}},
            "what does not end within 10,000 expansions",
        ),
        ({"columns": {"instruction": "{{ nobody }}"}}, "row 1: .*nobody"),
        (
            {"rules": {**SUMS["rules"], "who": ["Ann", {"text": "Ben", "weight": math.inf}]}},
            r"but rules\.who\.1\.weight: Input should be a finite number",
        ),
        (
            {"rules": {**SUMS["rules"], "who": [{"text": "Ann", "weight": 1e308}] * 2}},
            r"but rules\.who\.0\.weight: Input should be less than or equal to 1000000000",
        ),
        (
            {"rules": {**SUMS["rules"], "what": ["<colour>" * 9], "colour": ["red" * 50_000]}},
            "what makes a text longer than 1 MB; give shorter productions",
        ),
        ({"rows": 0}, "rows: Input should be greater than or equal to 1"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_what_is_no_grammar_says_so(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        rows(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "expected the node content"),
        ("a: &a [x]\nb: *a", "an alias in line 2; write out what it stands for"),
        ("a: &a [*a]", "an alias in line 1"),
        ("a: " + "[" * 600 + "]" * 600, "values nested too deep"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!bool x", "a fault: 'x'"),
        ("a: !!timestamp x", "no attribute 'groupdict'"),
        ("a: " + "9" * 5000, "4300 digits"),
    ],
)
def test_a_file_that_is_no_yaml(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "grammar.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"grammar.yaml: expected a grammar as YAML, (.|\n)*{fault}"):
        list(read_rows(path, "grammar"))


@pytest.mark.parametrize("most", [2_000_000, 1000])
def test_a_grammar_is_read_up_to_a_size(tmp_path: Path, most: int) -> None:
    """Of a packed file no more is unpacked than that."""
    text = yaml.safe_dump(SUMS).encode()
    whole, long = tmp_path / "a.yaml.gz", tmp_path / "b.yaml.gz"
    whole.write_bytes(gzip.compress(text.ljust(1000, b"\n")))
    long.write_bytes(gzip.compress(text.ljust(min(most, 1_000_000) + 1, b"\n")))
    assert len(list(read_rows(whole, "grammar", max_part=most))) == 400
    with pytest.raises(BadInput, match=r"b\.yaml\.gz is larger than (1|0\.001) MB, expected a grammar of"):
        list(read_rows(long, "grammar", max_part=most))


def test_the_shipped_grammar_makes_different_rows_with_right_answers() -> None:
    path = Path(__file__).parents[2] / "configs" / "grammars" / "sums.yaml"
    found = [row for _, row in read_rows(path, "grammar")]
    assert len({row["instruction"] for row in found}) > 380
    for row in found:
        words = row["instruction"].split()
        numbers = [int(word.rstrip(".")) for word in words if word.rstrip(".").isdigit()]
        expected = numbers[0] - numbers[1] if "gives" in words else numbers[0] + numbers[1]
        assert int(row["output"]) == expected


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected a grammar as YAML, .*surrogates not allowed"):
        rows(tmp_path, columns={"instruction": "a \ud800", "output": "b"})
