from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import FilterConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.select.stage import filter_rows

WORDS = [f"w{number}" for number in range(15)]


def row(number: int, instruction: str, output: str = "yes") -> dict[str, Any]:
    return {"id": f"r{number}", "instruction": instruction, "input": "", "output": output}


@pytest.fixture
def filtered(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> Callable[..., tuple[list[str], dict[str, str], Any]]:
    numbers = iter(range(9))

    def call(rows: list[dict[str, Any]], inputs: dict[str, Path] | None = None, **settings: Any) -> Any:
        number = next(numbers)
        workdir = tmp_path / f"out{number}"
        workdir.mkdir()
        given = {"rows": write_rows(rows, f"in{number}"), **(inputs or {})}
        config = SelectConfig(
            pool=(RowSource(source="x"),), budget_ratio=0.5, filter=FilterConfig(**settings)
        )
        filter_rows.body(Job(config), given, workdir, silent)
        kept = [json.loads(line)["id"] for line in (workdir / "rows.jsonl").read_text().splitlines()]
        out = [json.loads(line) for line in (workdir / "left_out.jsonl").read_text().splitlines()]
        metrics = json.loads((workdir / "metrics.json").read_text())
        return kept, {one["id"]: one["reason"] for one in out}, metrics

    return call


def evaluation(tmp_path: Path) -> dict[str, Path]:
    text, task = tmp_path / "text", tmp_path / "task"
    text.mkdir()
    task.mkdir()
    (text / "text.jsonl").write_text(json.dumps({"text": " ".join(WORDS).title(), "source": "s"}) + "\n")
    asked = {"question": "one two three four five six seven", "choices": {"text": ["eight nine ten", "no"]}}
    (task / "rows.jsonl").write_text(json.dumps(asked) + "\n")
    return {"text": text, "task_quiz": task}


def test_near_repeats_and_what_is_judged_go(filtered: Callable[..., Any], tmp_path: Path) -> None:
    """13 words in succession of the text, in other case and with other marks; 12 are not enough."""
    long = " ".join(f"word{number}" for number in range(60))
    rows = [
        row(0, long),
        row(1, f"{long}!"),
        row(2, f"Say: {', '.join(WORDS[1:14])}."),
        row(3, f"Say: {', '.join(WORDS[1:13])}."),
        row(4, "something else"),
        row(5, f"Repeat {' '.join(WORDS)}"),
        row(6, f"Repeat {' '.join(WORDS)}!"),
    ]
    kept, out, metrics = filtered(rows, evaluation(tmp_path))
    assert kept == ["r0", "r3", "r4"]
    assert out["r1"] == "nearly the same as r0"
    assert out["r2"] == "shares 13 words in succession with the text of evaluate"
    assert metrics == {"rows": 3, "near_duplicate_rows": 1, "contaminated_rows": 3}


def test_a_row_is_no_repeat_of_one_that_went(filtered: Callable[..., Any], tmp_path: Path) -> None:
    tail = " ".join(f"tail{number}" for number in range(200))
    rows = [row(0, f"{' '.join(WORDS)} {tail}"), row(1, f"{' '.join(WORDS[:11])} {tail}")]
    kept, out, _ = filtered(rows, evaluation(tmp_path))
    assert (kept, list(out)) == (["r1"], ["r0"])


def test_questions_of_a_task_count_across_their_columns(filtered: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(0, "one two three four five six seven eight nine ten"), row(1, "three four")]
    kept, out, _ = filtered(rows, evaluation(tmp_path), contaminated_words=9)
    assert kept == ["r1"]
    assert out["r0"] == "shares 9 words in succession with the task quiz"


def test_each_filter_can_be_off(filtered: Callable[..., Any], tmp_path: Path) -> None:
    rows = [row(0, " ".join(WORDS)), row(1, " ".join(WORDS) + "!")]
    kept, out, _ = filtered(rows, evaluation(tmp_path), near_duplicates=False, contaminated_words=None)
    assert (kept, out) == (["r0", "r1"], {})


def test_the_order_of_the_file_decides_nothing(filtered: Callable[..., Any]) -> None:
    long = " ".join(f"word{number}" for number in range(60))
    rows = [row(number, long + "!" * number) for number in range(5)]
    assert filtered(rows) == filtered(rows[::-1])


def test_nothing_left_says_which_filter_took_how_many(filtered: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"of 1 rows of select\.pool not one is left: 0 nearly repeat .* 1 share 13 words"
    ):
        filtered([row(0, " ".join(WORDS))], evaluation(tmp_path))
