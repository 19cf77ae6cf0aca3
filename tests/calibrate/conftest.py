from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tiny_bytes import write_byte_llama

# Tiny operations on several threads mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of two layers over bytes, with its tokenizer."""
    widths = {"num_hidden_layers": 3, "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": True}
    return write_byte_llama(tmp_path_factory.mktemp("model"), 0, max_position_embeddings=2048, **widths)


@pytest.fixture
def text_folder(tmp_path: Path) -> Callable[[list[str]], Path]:
    def write(texts: list[str]) -> Path:
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({"text": text, "source": f"s{index}"}) for index, text in enumerate(texts)]
        (folder / "text.jsonl").write_text("\n".join(lines))
        return folder

    return write
