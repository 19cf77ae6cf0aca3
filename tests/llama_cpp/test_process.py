"""llama.cpp in a child process: faults are sentences, limits hold, and resprout is not in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.gguf.types import FileType, GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.llama_cpp import library, worker
from resprout.tasks.llama_cpp.library import require_llama_cpp
from resprout.tasks.llama_cpp.model import FILE, LlamaCppModel
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.load import load_tokenizer
from tiny_models import tiny_model, write_byte_tokenizer

IDS = [(place * 37 + 11) % 256 for place in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that llama.cpp serves, with the same model for transformers beside it."""
    found: Path = tmp_path_factory.mktemp("model")
    model = tiny_model("llama", hidden_size=256, intermediate_size=256)
    write_byte_tokenizer(found)
    model.save_pretrained(found)
    write_gguf(model, load_tokenizer(found), found, found / FILE, GgufType.F32)
    return found


def test_a_damaged_and_a_missing_file_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((folder / FILE).read_bytes()[:-5000])
    for file in (cut, tmp_path / "none.gguf"):
        with (
            LlamaCpp(file) as llama,
            pytest.raises(StageFailed, match=f"^{file.name}: llama.cpp cannot load"),
        ):
            llama.load(64, 1)


def test_a_process_that_is_killed_is_said(folder: Path) -> None:
    with LlamaCpp(folder / FILE) as llama:
        llama.load(64, 1)
        llama._process.kill()
        with pytest.raises(StageFailed, match=r"llama\.cpp ended while it worked on model\.gguf"):
            llama.logits(IDS)


def test_memory_is_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resprout.tasks.llama_cpp.process.MEMORY_BYTES", 2 * 10**8)
    with LlamaCpp(folder / FILE) as llama, pytest.raises(StageFailed):
        llama.load(200_000, 1)


def test_the_worker_reads_nothing_of_resprout() -> None:
    code = f"import runpy, sys; runpy.run_path({worker.__file__!r}); print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=os.sep
    )
    modules = loaded.stdout.split()
    assert "llama_cpp_py_sync" in modules
    assert [name for name in modules if name.partition(".")[0] in ("resprout", "torch")] == []


def test_rows_of_one_batch_do_not_see_each_other_nor_padding(folder: Path) -> None:
    wanted = tiny_model("llama", hidden_size=256, intermediate_size=256)
    served = LlamaCppModel(folder, threads=1)
    ids = torch.tensor([[0, 0, *IDS[:6]], IDS[:8]])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    found = served(ids, mask).logits
    assert (found[0, :2] == 0).all()
    for row, own in ((found[0, 2:], IDS[:6]), (found[1], IDS[:8])):
        assert (row - wanted(torch.tensor([own])).logits[0]).abs().max() < 2e-3
    served.close()


def test_greedy_text_is_that_of_transformers(folder: Path) -> None:
    model = tiny_model("llama", hidden_size=256, intermediate_size=256)
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS)), **asked)
    served = LlamaCppModel(folder, threads=1)
    assert served.generate(torch.tensor([IDS]), **asked).tolist() == wanted.tolist()
    served.close()


def test_a_choice_is_scored_as_by_transformers_whatever_was_read_before(folder: Path) -> None:
    model = tiny_model("llama", hidden_size=256, intermediate_size=256)
    choices = [[7], [9, 200, 31], IDS[:8], [7], IDS[3:20], IDS[:6], IDS[2:9]]
    # Two at a time, and as many as the room behind the context holds.
    answers = {}
    with LlamaCpp(folder / FILE) as llama:
        for room, sequences in ((64, 3), (256, 9)):
            llama.load(room, 1, sequences, shared=True)
            llama.logits(IDS[::-1])
            answers[room] = llama.score(IDS, choices)
        alone = [llama.score(IDS, [choice])[0] for choice in choices]
    for found in answers.values():
        assert [one[0] for one in found] == pytest.approx([one[0] for one in alone], abs=1e-4)
        assert [one[1] for one in found] == [one[1] for one in alone]
    for choice, (total, greedy) in zip(choices, answers[64], strict=True):
        rows = model(torch.tensor([[*IDS, *choice]])).logits[0, len(IDS) - 1 : -1].log_softmax(-1)
        wanted = rows[range(len(choice)), choice].sum().item()
        assert total == pytest.approx(wanted, abs=0.02)
        assert greedy == (rows.argmax(-1).tolist() == choice)


def test_a_quantised_file_is_smaller_and_near(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    with LlamaCpp(folder / FILE) as llama:
        llama.quantize(target, FileType(GgufType.Q8_0), 1, None)
        llama.load(64, 1)
        wanted = torch.from_numpy(llama.logits(IDS).copy())
    assert target.stat().st_size < 0.4 * (folder / FILE).stat().st_size
    with LlamaCpp(target) as llama:
        llama.load(64, 1)
        found = torch.from_numpy(llama.logits(IDS).copy())
    assert 1e-6 < (found - wanted).abs().max() < 0.05


def test_times_are_of_the_tokens_asked(folder: Path) -> None:
    with LlamaCpp(folder / FILE) as llama:
        llama.load(200, 1, sequences=2)
        short, long = (llama.times(IDS, steps, 2) for steps in (2, 150))
    assert 0 < short.decode_seconds < long.decode_seconds
    assert short.prefill_seconds > 0
    assert long.peak_memory_bytes > 10**7


def test_another_version_another_library_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str) -> None:
        require_llama_cpp.cache_clear()
        with pytest.raises(BadInput, match=match):
            require_llama_cpp()

    with monkeypatch.context() as patched:
        patched.setattr(library, "VERSION", "0.0.1")
        refused(r"0\.11739 is installed, but .* judged by 0\.0\.1")
    with monkeypatch.context() as patched:
        place = (sys.platform, library.platform.machine())
        patched.setattr(library, "DIGESTS", {place: {"libllama.so": "0" * 64}})
        refused("libllama.so of llama-cpp-py-sync .* is not the library that was released")
    with monkeypatch.context() as patched:
        patched.setattr(library, "PACKAGE", "no_such_package")
        refused("llama.cpp, which is not installed")
    require_llama_cpp.cache_clear()
    require_llama_cpp()
