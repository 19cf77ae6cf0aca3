"""A graph called as transformers calls a model: padding, choices, written answers, and what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.evaluate.language_model import language_model
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.onnx_runtime import library
from resprout.tasks.onnx_runtime.graph import write_graph
from resprout.tasks.onnx_runtime.library import require_onnx
from resprout.tasks.onnx_runtime.model import OnnxModel
from tiny_models import tiny_model, write_byte_tokenizer

IDS = [(place * 37 + 11) % 256 for place in range(24)]
PROMPTS = ["one and two", "a longer prompt, of another kind", "z"]
TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("model")
    write_byte_tokenizer(found / "tokenizer")
    write_graph(tiny_model("llama"), found / "tokenizer", found, torch.float32)
    return found


@pytest.fixture
def served(folder: Path) -> Iterator[OnnxModel]:
    model = OnnxModel(folder, 1)
    yield model
    model.close()


def test_rows_of_one_batch_do_not_see_each_other_nor_padding(served: OnnxModel) -> None:
    wanted = tiny_model("llama")
    ids = torch.tensor([[0, 0, *IDS[:6]], IDS[:8]])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    found = served(ids, mask).logits
    assert (found[0, :2] == 0).all()
    for row, own in ((found[0, 2:], IDS[:6]), (found[1], IDS[:8])):
        assert (row - wanted(torch.tensor([own])).logits[0]).abs().max() < 1e-5


def test_a_choice_is_scored_as_by_transformers_whatever_was_read_before(served: OnnxModel) -> None:
    model = tiny_model("llama")
    choices = [[7], [9, 200, 31], IDS[:8], [7]]
    found = served.score(IDS, choices)
    assert found == served.score(IDS, choices)
    for choice, (total, greedy) in zip(choices, found, strict=True):
        rows = model(torch.tensor([[*IDS, *choice]])).logits[0, len(IDS) - 1 : -1].log_softmax(-1)
        assert total == pytest.approx(rows[range(len(choice)), choice].sum().item(), abs=1e-4)
        assert greedy == (rows.argmax(-1).tolist() == choice)
    likely = [model(torch.tensor([IDS])).logits[0, -1].argmax().item()]
    assert served.score(IDS, [likely])[0][1]


class Asked:
    """A request as lm-eval makes it."""

    def __init__(self, prompt: str, until: list[str]) -> None:
        self.args = (prompt, {"until": until, "do_sample": False, "temperature": 0.0, "max_gen_toks": TOKENS})


def test_it_writes_what_transformers_write_and_is_cut_where_they_are(served: OnnxModel, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    both: list[Any] = [language_model(one, tokenizer, 2) for one in (tiny_model("llama"), served)]
    free = [lm.generate_until([Asked(one, []) for one in PROMPTS]) for lm in both]
    assert free[0] == free[1]
    stop = next(free[0][0][at : at + 2] for at in range(4, TOKENS) if free[0][0][at : at + 2].isascii())
    for until in ([stop], [stop, "never"]):
        for lm in both:
            lm.reset()
        answers = [lm.generate_until([Asked(one, until) for one in PROMPTS]) for lm in both]
        assert answers[0] == answers[1]
        assert both[0].cut == both[1].cut
        assert not both[1].cut[PROMPTS[0]]


def test_a_stop_string_ends_the_work(served: OnnxModel, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    whole = served.generate(ids, max_new_tokens=TOKENS)[0, ids.shape[1] :]
    text = tokenizer.decode(whole)
    stop = next(text[at : at + 2] for at in range(len(text)) if text[at : at + 2].strip().isascii())
    part = served.generate(ids, max_new_tokens=TOKENS, stop=[stop])[0, ids.shape[1] :]
    assert len(part) < len(whole) == TOKENS
    assert torch.equal(part, whole[: len(part)])


def test_other_versions_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(versions: dict[str, str], match: str) -> None:
        monkeypatch.setattr(library, "VERSIONS", versions)
        require_onnx.cache_clear()
        with pytest.raises(BadInput, match=match):
            require_onnx()

    refused({"no_such_package": "1"}, r"needs? no_such_package, not installed here; pip install")
    refused({"onnx": "0.0.1"}, r"onnx 1\.\S+ is installed, but ONNX files are made and judged by 0\.0\.1")
    monkeypatch.undo()
    require_onnx.cache_clear()
    require_onnx()
