"""Answers of the dense model to the selected rows: what it writes, what is not trained on, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_checkpoints import Kept, killed_at
from kept_checkpoints import Killed as Stopped
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress, silent
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.select import self_written as module
from resprout.tasks.select.self_written import Question, generate, questions, repeats, result
from resprout.tasks.select.stage import answer
from tiny_bytes import byte_llama, byte_tokenizer

END = 257
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nsay \n\n### Response:"
)
ROWS = [
    {"id": str(number), "instruction": f"say {'a' * number}", "input": "", "output": f"so #### {number}"}
    for number in range(5)
]


def settings(targets: str = "self", room: int = 300, **answers: Any) -> SelectConfig:
    given: dict[str, Any] = {"budget_ratio": 0.5, "max_len_tokens": room, "targets": targets}
    given["answers"] = {"temperature": 0.0, **answers}
    return SelectConfig.model_validate({"pool": [{"source": "x"}], **given})


def chain(folder: Path, following: dict[str, str]) -> Path:
    """A llama that looks at the last byte alone: each byte is followed by the one given, </s> by default.

    Attention and FFN give nothing, so that its hidden state is the byte's embedding, one place of its own.
    """
    model: LlamaForCausalLM = byte_llama(0, hidden_size=260, tie_word_embeddings=False)
    tokenizer = byte_tokenizer()
    number = {char: tokenizer(char)["input_ids"][0] for char in {*following, *"".join(following.values())}}
    after = torch.full((258,), END)
    for char, then in following.items():
        after[number[char]] = number[then]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(258, 260))
        model.lm_head.weight.zero_()
        model.lm_head.weight[after, torch.arange(258)] = 1.0
    model.generation_config.eos_token_id = END
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def selection(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "selected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"requested_tokens": 900, "filled_tokens": 800, "pool_tokens": 3000, "warnings": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Answered:
    def __init__(self, folder: Path) -> None:
        self.rows, self.answers = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for name in ("selected.jsonl", "answers.jsonl")
        )
        self.summary = json.loads((folder / "summary.json").read_text())
        self.metrics = json.loads((folder / "metrics.json").read_text())


def answered(
    folder: Path, dense: Path, config: SelectConfig, rows: list[dict[str, Any]] = ROWS, **job: Any
) -> Answered:
    inputs = {"dense": dense, "selection": selection(folder.with_name(f"{folder.name}-rows"), rows)}
    folder.mkdir()
    progress: Progress = job.pop("progress", silent)
    answer.body(Job(config, dtype="float32", **job), inputs, folder, progress)
    return Answered(folder)


def test_the_model_answers_until_it_ends_the_answer(tmp_path: Path) -> None:
    """A prompt ends in a colon, behind which this model says `yes`, and then nothing more."""
    dense = chain(tmp_path / "dense", {":": "y", "y": "e", "e": "s"})
    found = answered(tmp_path / "out", dense, settings(batch_rows=2))
    assert [row["output"] for row in found.rows] == ["yes"] * 5
    assert [row["id"] for row in found.rows] == list("01234"), "rows stay in their order"
    assert {row["targets"] for row in found.rows} == {"self"}
    # The prompt, of the instruction so many letters, the answer, and its end; a token is a byte.
    assert [row["tokens"] for row in found.rows] == [len(PROMPT) + number + 3 + 1 for number in range(5)]
    assert [one["tokens"] for one in found.answers] == [4] * 5
    assert found.metrics == {
        "self_written_rows": 5, "original_rows": 0, "dropped_rows": 0,
        "answered_tokens": sum(row["tokens"] for row in found.rows), "answer_tokens": 20,
        "cut_rows": 0,
    }  # fmt: skip
    assert found.summary["requested_tokens"] == 900, "training is as long as the selection asked for"


@pytest.mark.parametrize(
    ("following", "fault"),
    [({}, "empty"), ({":": " "}, "empty"), ({":": "x", "x": "x"}, "repeating itself")],
)
def test_answers_that_are_not_trained_on(following: dict[str, str], fault: str, tmp_path: Path) -> None:
    dense = chain(tmp_path / "dense", following)
    found = answered(tmp_path / "mixed", dense, settings("mixed"))
    assert [row["output"] for row in found.rows] == [row["output"] for row in ROWS]
    assert {(one["fault"], one["trained_on"]) for one in found.answers} == {(fault, "original")}
    assert found.summary["answers"]["faults"] == {fault: 5}
    assert f"(5 {fault}): all keep their own answers" in found.summary["warnings"][0]
    with pytest.raises(BadInput, match=rf"of 5 answers .* none can be trained on \(5 {fault}\)"):
        answered(tmp_path / "self", dense, settings())


def test_an_answer_that_is_cut_is_left_out(tmp_path: Path) -> None:
    """The longer the prompt, the less of `max_len_tokens` is left: three tokens hold `abc`, not its end."""
    dense = chain(tmp_path / "dense", {":": "a", "a": "b", "b": "c"})
    found = answered(tmp_path / "out", dense, settings(room=len(PROMPT) + 6))
    assert [one["fault"] for one in found.answers] == ["", "", "", "cut", "cut"]
    assert [one["tokens"] for one in found.answers] == [4, 4, 4, 3, 2]
    assert [row["id"] for row in found.rows] == ["0", "1", "2"]
    assert found.metrics["dropped_rows"] == 2


def test_an_answer_ends_at_the_next_heading_of_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind `yes` this model goes on as if with another prompt, to the end of its room."""
    monkeypatch.setattr(module, "ALPACA_HEADINGS", ("=#",))
    dense = chain(tmp_path / "dense", {":": " ", **dict(zip(" yes=#", "yes=##", strict=True))})
    found = answered(tmp_path / "out", dense, settings())
    assert {row["output"] for row in found.rows} == {"yes"}, "nor the blank before it"
    assert {(one["tokens"], one["fault"]) for one in found.answers} == {(4, "")}
    model: Any = load_model(dense, "float32", "cpu")
    tokenizer = load_tokenizer(dense)
    batch = questions(tokenizer, ROWS, settings(), "alpaca", None)
    written = generate(model, tokenizer, batch, settings(), ["=#"])
    assert {tokenizer.decode(one) for one in written} == {" yes=#"}


def test_a_chat_model_is_asked_in_its_own_form(tmp_path: Path) -> None:
    """It answers `yes` behind the colon of an Alpaca prompt, `no` behind its own; Alpaca is trained on."""
    dense = chain(tmp_path / "dense", {":": "y", "y": "e", "e": "s", ">": "n", "n": "o"})
    plain = answered(tmp_path / "plain", dense, settings())
    assert plain.summary["answers"]["asked_in"] == "alpaca"
    tokenizer = load_tokenizer(dense)
    tokenizer.chat_template = (
        "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(dense)
    own = answered(tmp_path / "own", dense, settings())
    asked = answered(tmp_path / "asked", dense, settings(template="alpaca"))
    assert [{row["output"] for row in one.rows} for one in (plain, own, asked)] == [{"yes"}, {"no"}, {"yes"}]
    assert own.summary["answers"]["asked_in"] == "chat"
    assert [row["tokens"] for row in own.rows] == [len(PROMPT) + number + 2 + 1 for number in range(5)]
    tokenizer.chat_template = "{{ messages[0].rolle.name }}"
    tokenizer.save_pretrained(dense)
    assert answered(tmp_path / "broken", dense, settings()).summary["answers"]["asked_in"] == "alpaca"
    with pytest.raises(BadInput, match="chat template"):
        answered(tmp_path / "asked-for", dense, settings(template="chat"))


def test_another_result_is_not_trained_on(tmp_path: Path) -> None:
    """The model says `#=3` to all; only one row's own answer comes to that, and one to no number."""
    dense = chain(tmp_path / "dense", {":": "#", "#": "=", "=": "3"})
    rows = [*ROWS[:4], {**ROWS[4], "output": "who knows"}]
    rows = [{**row, "output": row["output"].replace("#### ", "#=")} for row in rows]
    found = answered(tmp_path / "out", dense, settings("mixed", result=r"#=(\d)"), rows)
    own, other = ("", "self"), ("with another result", "original")
    assert [(one["fault"], one["trained_on"]) for one in found.answers] == [other, other, other, own, own]
    with pytest.raises(BadInput, match=r"select\.answers\.result is 'total', which is found in the"):
        answered(tmp_path / "none", dense, settings("mixed", result="total"), rows)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [(r"#### (.+)", "42"), (r"#### \d+", "#### 42"), (r"(?:so|thus) (\w+)", "x"), (r"never", None)],
)
def test_the_last_result_of_a_text(pattern: str, found: str | None) -> None:
    assert result("so y #### 7\nthus x #### 42 ", pattern) == found


def test_repeats_by_hand() -> None:
    """Twelve tokens have nine 4-grams: of a cycle of four, four differ; of one of six, six."""
    assert repeats([1, 2, 3, 4] * 3)
    assert not repeats([1, 2, 3, 4, 5, 6] * 2)
    assert not repeats([1] * 10), "seven 4-grams are too few to tell"


def test_a_batch_writes_what_each_row_alone_would(models_folder: Path) -> None:
    """Against a loop over the whole sequence, without cache, padding or batch."""
    model: Any = load_model(models_folder / "dense", "float32", "cpu")
    tokenizer = load_tokenizer(models_folder / "dense")
    batch = questions(tokenizer, ROWS, settings(room=160), "alpaca", None)
    expected = []
    for one in batch:
        ids = list(one.prompt)
        with torch.no_grad():
            while len(ids) < len(one.prompt) + one.room and ids[-1] != END:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(one.prompt) :])
    assert len({len(one) for one in expected}) > 1
    assert generate(model, tokenizer, batch, settings(room=160)) == expected


def test_the_own_answer_as_a_guide_stands_in_the_prompt_alone(models_folder: Path) -> None:
    tokenizer = load_tokenizer(models_folder / "dense")
    plain = questions(tokenizer, ROWS, settings(), "alpaca", None)
    guided = questions(tokenizer, ROWS, settings(reference=True), "alpaca", None)
    for row, one, other in zip(ROWS, plain, guided, strict=True):
        assert row["output"] in tokenizer.decode(other.prompt)
        assert row["output"] not in tokenizer.decode(one.prompt)
        assert one.room == other.room == 300 - len(one.prompt), "by the prompt that is trained on"
    positions = len(guided[0].prompt) + 10
    limited = questions(tokenizer, ROWS, settings(reference=True), "alpaca", positions)
    assert [one.room for one in limited] == [max(0, 10 - number) for number in range(5)]


def test_drawn_answers_follow_the_seed(models_folder: Path, tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate((17, 17, 18)):
        config = settings("mixed", room=170, temperature=1.0, batch_rows=3)
        found = answered(tmp_path / str(number), models_folder / "dense", config, seed=seed)
        texts.append([one["answer"] for one in found.answers])
    assert texts[0] == texts[1] != texts[2]


def test_what_was_answered_is_not_answered_again(
    models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_MINUTES", 1e-9)
    config, kept = settings("mixed", room=170, temperature=1.0, batch_rows=2), Kept(tmp_path / "kept")
    dense = models_folder / "dense"
    answered(tmp_path / "whole", dense, config)
    with pytest.raises(Stopped):
        answered(tmp_path / "half", dense, config, checkpoints=kept, progress=killed_at(4))
    assert kept.steps == [1]
    asked = list[int]()
    real = module.generate

    def counted(model: Any, tokenizer: Any, batch: list[Question], *others: Any) -> Any:
        asked.append(len(batch))
        return real(model, tokenizer, batch, *others)

    monkeypatch.setattr(module, "generate", counted)
    answered(tmp_path / "again", dense, config, checkpoints=kept)
    assert asked == [2, 1], "three of five were left"
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "again")
    )
    assert first == second


def test_logits_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """The second row and the third hold a byte that the model has no numbers for."""
    dense = chain(tmp_path / "dense", {":": "a"})
    model: Any = load_model(dense, "float32", "cpu")
    tokenizer = load_tokenizer(dense)
    [bad] = tokenizer("~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    rows = [{**row, "file": "own.csv", "row": 10 + number} for number, row in enumerate(ROWS[:3])]
    rows[1] |= {"instruction": "~"}
    rows[2] |= {"instruction": "~", "file": None}
    batch = questions(tokenizer, rows, settings(), "alpaca", None)
    said = (
        rf"not finite while it answers the row {rows[1]['id']}, row 11 of own\.csv, and 1 more of its batch; "
        r"try model\.dtype: float32, or select\.targets: original"
    )
    with pytest.raises(StageFailed, match=said):
        generate(model, tokenizer, batch, settings())
    with pytest.raises(StageFailed, match=rf"answers the row {rows[2]['id']}; try"):
        generate(model, tokenizer, batch[2:], settings())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": "original", "answers": {"temperature": 0.5}}, "targets is original, where it does not"),
        ({"targets": "self", "answers": {"result": "("}}, "no regular expression"),
        ({"targets": "self", "answers": {"result": "(a)(b)"}}, "has 2 groups"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SelectConfig.model_validate({"pool": [{"source": "x"}], "budget_ratio": 0.5, **changes})


def test_compared_answers_are_written_as_the_section_says() -> None:
    """Only the arms in which the dense model answers: the run's own rows keep theirs."""
    given = {"method": "random", "compare": ["longest", "random:self"], "answers": {"temperature": 0.5}}
    config = SelectConfig.model_validate({"pool": [{"source": "x"}], "budget_ratio": 0.5, **given})
    assert config.targets == "original"
    arms = config.arms
    assert (arms["random:self"].targets, arms["random:self"].answers.temperature) == ("self", 0.5)
    assert arms["longest"].answers.temperature == 1.0
