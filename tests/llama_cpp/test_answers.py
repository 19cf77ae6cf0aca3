"""Answers that llama.cpp writes: stop strings end them, and those that end by themselves are not cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resprout.tasks.evaluate.language_model import language_model
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.llama_cpp.model import FILE, LlamaCppModel
from resprout.tasks.models.load import load_tokenizer
from tiny_models import tiny_model, write_byte_tokenizer

PROMPTS = ["one and two", "a longer prompt, of another kind", "z"]
TOKENS = 40


class Asked:
    """A request as lm-eval makes it."""

    def __init__(self, prompt: str, until: list[str]) -> None:
        self.args = (prompt, {"until": until, "do_sample": False, "temperature": 0.0, "max_gen_toks": TOKENS})


def pair(text: str) -> str:
    """The first two characters that stand together and are whole in the text."""
    return next(text[at : at + 2] for at in range(len(text)) if text[at : at + 2].strip().isascii())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("model")
    model = tiny_model("llama", hidden_size=256, intermediate_size=256)
    write_byte_tokenizer(found)
    model.save_pretrained(found)
    write_gguf(model, load_tokenizer(found), found, found / FILE, GgufType.F32)
    return found


def test_a_file_writes_what_transformers_write_and_is_cut_where_they_are(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    served = LlamaCppModel(folder, 1)
    try:
        both = [
            language_model(one, tokenizer, 2)
            for one in (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), served)
        ]
        free = [lm.generate_until([Asked(one, []) for one in PROMPTS]) for lm in both]
        assert free[0] == free[1]
        stop = pair(free[0][0])
        for until in ([stop], [stop, "never"], []):
            for lm in both:
                lm.reset()
            answers = [lm.generate_until([Asked(one, until) for one in PROMPTS]) for lm in both]
            assert answers[0] == answers[1]
            assert both[0].cut == both[1].cut
            assert all(stop not in one for one in answers[1]) or not until
        assert both[1].cut == dict.fromkeys(PROMPTS, True)
        for lm in both:
            lm.reset()
            lm.generate_until([Asked(PROMPTS[0], [stop])])
        assert both[1].cut == {PROMPTS[0]: False}
    finally:
        served.close()


def test_a_stop_string_ends_the_work(folder: Path) -> None:
    served = LlamaCppModel(folder, 1)
    try:
        tokenizer = load_tokenizer(folder)
        ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
        whole = served.generate(ids, max_new_tokens=TOKENS)[0, ids.shape[1] :]
        stop = pair(tokenizer.decode(whole))
        part = served.generate(ids, max_new_tokens=TOKENS, stop=[stop])[0, ids.shape[1] :]
        assert len(part) < len(whole) == TOKENS
        assert stop in tokenizer.decode(part)
        assert torch.equal(part, whole[: len(part)])
    finally:
        served.close()
