"""Answers to prompts: greedy as one at a time, ended and cut, and where there is no room for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resprout.configs.schema import EvaluateConfig
from resprout.tasks.evaluate import prompts
from resprout.tasks.evaluate.prompts import ask
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import write_tiny_folder

PROMPTS = ("w5 w9 w11", "w20", "w30 w31 w32 w33 w34")
TEMPLATE = (
    "{% for m in messages %}w7 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w8 {% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "model", dtype="float32")


def test_a_batch_answers_as_each_prompt_alone(folder: Path) -> None:
    model, tokenizer = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
    found = ask(model, tokenizer, PROMPTS)
    assert [one["prompt"] for one in found.answers] == list(PROMPTS)
    for prompt, one in zip(PROMPTS, found.answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            for _ in range(prompts.NEW_TOKENS):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
                if ids[0, -1] == tokenizer.eos_token_id:
                    break
        new = ids[0, len(tokenizer(prompt).input_ids) :]
        assert one["answer"] == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert one["cut"] == (new[-1].item() != tokenizer.eos_token_id)
    assert not found.chat


def test_a_chat_template_is_used_and_one_that_fails_is_said(folder: Path) -> None:
    model, plain = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
    for template, asked, note in ((TEMPLATE, "w7 w20 w8 ", ""), ("{{ nothing.at.all }}", "w20", "template")):
        (folder / "chat_template.jinja").write_text(template)
        found = ask(model, load_tokenizer(folder), ["w20"])
        assert found.chat == (asked != "w20")
        assert note in found.note
        assert found.answers[0]["answer"] == ask(model, plain, [asked]).answers[0]["answer"]


def test_where_no_position_is_left_there_are_no_answers_but_a_reason(folder: Path) -> None:
    model, tokenizer = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
    long = " ".join(["w5"] * model.config.max_position_embeddings)
    found = ask(model, tokenizer, ["w5", long])
    assert found.answers == []
    assert "leaves no position for an answer" in found.note


def test_prompts_enter_the_key_and_can_be_left_out() -> None:
    base = {"perplexity": {"name": "words", "text": [{"source": "x"}]}}
    five = EvaluateConfig.model_validate(base)
    assert len(five.prompts) == 5
    assert EvaluateConfig.model_validate({**base, "prompts": []}).prompts == ()
    assert json.dumps(five.key_data()["prompts"])
