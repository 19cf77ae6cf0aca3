from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import FilterConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.select.filters import JudgedText, warned
from resprout.tasks.select.forms import forms_among
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


def warnings(tmp_path: Path) -> list[str]:
    """Of the first call."""
    return warned(tmp_path / "out0")


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
    assert metrics == {"rows": 3, "near_duplicate_rows": 1, "contaminated_rows": 3, "capability_rows": 0}


def made_up(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"word{number}" for number in rng.integers(0, 3000, words))


@pytest.mark.parametrize("answers", ["of their own", "labels"])
def test_rows_behind_one_long_prompt_are_no_repeats(filtered: Callable[..., Any], answers: str) -> None:
    """700 words that all rows hold, then eight of each one's own; among 30 rows two ask the same."""
    rng = np.random.default_rng(3)
    prompt, asked = made_up(rng, 700), [made_up(rng, 8) for _ in range(30)]
    said = [made_up(rng, 20) if answers == "of their own" else "yes" for _ in asked]
    rows = [
        {**row(10 + number, f"{prompt}\n{asked[number]}"), "output": said[number]} for number in range(30)
    ]
    rows.append({**rows[7], "id": "r50", "output": f"{rows[7]['output']}."})
    kept, out, metrics = filtered(rows)
    assert (len(kept), out["r50"]) == (30, "nearly the same as r17")
    assert metrics["near_duplicate_rows"] == 1


def test_questions_on_one_long_document_are_no_repeats(filtered: Callable[..., Any]) -> None:
    """Ten rows of a document differ in their question or in their answer alone, five repeat one of them."""
    rng = np.random.default_rng(4)
    rows = []
    for document in (made_up(rng, 1200) for _ in range(3)):
        question = made_up(rng, 8)
        asked = [(made_up(rng, 8), "yes") for _ in range(5)] + [(question, made_up(rng, 8)) for _ in range(5)]
        for instruction, output in [*asked, *((f"{one}?", said.upper()) for one, said in asked[:5])]:
            rows.append({**row(100 + len(rows), instruction), "input": document, "output": output})
    kept, out, _ = filtered(rows)
    assert kept == [f"r{100 + 15 * part + place}" for part in range(3) for place in range(10)]
    assert out["r112"] == "nearly the same as r102"


def test_two_questions_on_each_of_many_texts_are_no_repeats(filtered: Callable[..., Any]) -> None:
    """Both questions are forms of the pool; what they are about and the labels are the same."""
    rng = np.random.default_rng(5)
    questions = (
        "Is the sentiment of this review positive?",
        "Does its author recommend it to friends at all?",
    )
    rows = [
        row(100 + 2 * number + place, f"{text}\n{question}")
        for number, text in enumerate(made_up(rng, 40) for _ in range(50))
        for place, question in enumerate(questions)
    ]
    kept, out, _ = filtered(rows)
    assert (len(kept), out) == (100, {})


@pytest.mark.parametrize(("said", "again"), [("yes", "Yes."), ("是", "是。"), ("हाँ", "हाँ।")])
def test_the_end_of_a_sentence_makes_no_other_answer(
    filtered: Callable[..., Any], said: str, again: str
) -> None:
    asked = made_up(np.random.default_rng(6), 60)
    rows = [row(0, asked, said), row(1, asked, again), row(2, asked, "no")]
    kept, out, _ = filtered(rows)
    assert (kept, list(out)) == (["r0", "r2"], ["r1"])


def test_forms_are_found_in_rows_drawn_at_random(
    filtered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two prompts that take turns a sample at even distances would see one."""
    monkeypatch.setattr("resprout.tasks.select.duplicates.FORM_SAMPLE", 100)
    rng = np.random.default_rng(7)
    prompts = [made_up(rng, 700) for _ in range(2)]
    rows = [row(100 + number, f"{prompts[number % 2]}\n{made_up(rng, 8)}") for number in range(150)]
    kept, _, _ = filtered(rows)
    assert len(kept) == 150


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
        BadInput, match=r"of 1 rows of the pool not one is left: 1 share 13 words in succession with "
    ):
        filtered([row(0, " ".join(WORDS))], evaluation(tmp_path))


FORM = "you are the assistant of our team answer the question below in one word " * 2


def questions(tmp_path: Path, *asked: str) -> dict[str, Path]:
    """A task that puts the form before each of its questions."""
    (tmp_path / "quiz").mkdir()
    rows = [json.dumps({"question": FORM + one}) for one in asked]
    (tmp_path / "quiz" / "rows.jsonl").write_text("\n".join(rows))
    return {"task_quiz": tmp_path / "quiz"}


PLEASE = "कृपया निम्नलिखित प्रश्न का उत्तर दीजिए:"


@pytest.mark.parametrize(
    ("asked", "other", "shared"),
    [
        (f"{PLEASE} सूरज कब निकलता है", f"{PLEASE} दूध कौन देता है", False),
        ("请回答下面这个问题：太阳什么时候从东边升起来", "太阳什么时候从东边升起来了呢？请说明", False),
        ("请回答下面这个问题：太阳什么时候会从东边升起来", "太阳什么时候会从东边升起来？请说明", True),
    ],
    ids=["six words of Hindi", "12 characters of Chinese", "13 of them"],
)  # fmt: skip
def test_words_of_other_scripts_are_what_a_reader_calls_so(
    filtered: Callable[..., Any], tmp_path: Path, asked: str, other: str, shared: bool
) -> None:
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz" / "rows.jsonl").write_text(json.dumps({"question": asked}))
    kept, out, _ = filtered([row(0, other), row(1, "else")], {"task_quiz": tmp_path / "quiz"})
    assert kept == (["r1"] if shared else ["r0", "r1"])
    assert list(out) == (["r0"] if shared else [])


def test_a_form_that_pool_and_task_share_says_nothing(filtered: Callable[..., Any], tmp_path: Path) -> None:
    """Of 40 rows behind the form one has a task's question of 13 words; another begins as a question does,
    so that twelve words of the form and one of its own stand in the task too.
    """
    inputs = questions(tmp_path, " ".join(WORDS[:13]), "whither leads the road")
    rows = [row(number, f"{FORM} question {number}", f"a{number}") for number in range(10, 48)]
    rows += [row(48, FORM + " ".join(WORDS[:13])), row(49, f"{FORM} whither goes the ship")]
    kept, out, metrics = filtered(rows, inputs, near_duplicates=False)
    assert out == {"r48": "shares 13 words in succession with the task quiz"}
    assert len(kept) == metrics["rows"] == 39
    assert warnings(tmp_path) == [
        "39 of 40 rows share 13 words in succession with the task quiz and stay: words that 20 rows and more "
        "than 1 % of all have in common are their form"
    ]


def test_what_fewer_rows_have_in_common_is_no_form(filtered: Callable[..., Any], tmp_path: Path) -> None:
    """19 rows with the form go; one more and it is their form, but not where they are 1 % of all rows."""
    inputs = questions(tmp_path, "what")
    rows = [row(number, f"{FORM} question {number}") for number in range(20)]
    others = [row(number, f"another question {number}") for number in range(20, 2100)]
    few = {"near_duplicates": False}
    assert len(filtered(rows[:19] + others[:60], inputs, **few)[0]) == 60
    assert len(filtered(rows + others[:60], inputs, **few)[0]) == 80
    assert len(filtered(rows + others[:1980], inputs, **few)[0]) == 1980


def test_forms_by_hand() -> None:
    """Of 30 rows 25 hold run 7, one of them twice, 20 run 3 and 19 run 5."""
    found = [np.array([7, 7, 3, 5])] + [np.array([3, 5, 7])] * 18 + [np.array([7, 3])] + [np.array([7])] * 5
    assert forms_among(found, 30).tolist() == [7, 3]
    assert forms_among(found, 2000).tolist() == [7]
    assert forms_among([], 30).tolist() == []


def test_the_first_place_of_a_run_is_named() -> None:
    texts = [("one", "a b c d"), ("one", "x y z"), ("none", "a"), ("two", "b c d e"), ("two", "a b c")]
    judged = JudgedText(texts, 3)
    shared = judged.shared_with("a b c q x y z. C, D, E")
    assert shared.begins.tolist() == [0, 4, 7]
    assert [judged.place(run) for run in shared.runs] == ["one", "one", "two"]
    assert judged.shared_with("a b").runs.tolist() == []
    assert JudgedText([], 3).shared_with("a b c").runs.tolist() == []


def test_judged_text_takes_some_bytes_a_word() -> None:
    """50,000 words, each of another run: an entry of a dictionary for each takes more than 100 bytes."""
    text = " ".join(str(number) for number in range(50_000))
    judged = JudgedText([("text", text)], 13)
    held = sum(one.nbytes for one in vars(judged).values() if isinstance(one, np.ndarray))
    assert len(judged.shared_with(text).runs) == 50_000 - 12
    assert held <= 10 * 50_000
    assert not any(isinstance(one, dict) for one in vars(judged).values())


def test_a_pool_of_which_much_goes_says_for_what_most(filtered: Callable[..., Any], tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(60))
    rows = [row(0, long), row(1, f"{long}!"), row(2, f"{long}?"), row(3, " ".join(WORDS)), row(4, "else")]
    filtered(rows, evaluation(tmp_path))
    assert warnings(tmp_path) == [
        "3 of 5 rows of the pool were left out before the selection; most common: 2 nearly repeat others "
        "(select.filter.near_duplicates)"
    ]
    filtered([row(number, f"a {number}") for number in range(4)] + [row(9, "a  1")])
    assert warned(tmp_path / "out1") == []


def test_what_the_model_is_for_is_not_trained_on(
    filtered: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    """Rows of select.capabilities go, whatever their case and spaces; the same question otherwise stays."""
    targets = write_rows([row(70, "Add  one and Two", "Three"), row(71, "sail away", "yes")], "targets")
    rows = [
        row(0, "add one and two", " three"),
        row(1, "sail away", "yes"),
        row(2, "sail away", "no"),
        row(3, "anchor"),
    ]
    kept, out, metrics = filtered(rows, {"targets": targets})
    assert kept == ["r2", "r3"]
    assert out == dict.fromkeys(("r0", "r1"), "a row of select.capabilities")
    assert (metrics["capability_rows"], metrics["rows"]) == (2, 2)
    with pytest.raises(BadInput, match=r"not one is left: 2 are rows of select\.capabilities, none of which"):
        filtered(rows[:2], {"targets": targets})
