from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_bytes import write_byte_llama

# Tiny operations on several threads mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `dense` and `pruned`: random llamas of two layers over bytes, with their tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("dense", "pruned")):
        write_byte_llama(root / name, seed, initializer_range=0.3)
    return root


@pytest.fixture
def write_selection(tmp_path: Path) -> Callable[..., Path]:
    """A selection artifact of `count` short rows for a budget of `requested` tokens."""

    def write(count: int = 12, requested: int = 3000, seed: int = 0, name: str = "selection") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rng = random.Random(seed)
        rows: list[dict[str, Any]] = [
            {"id": str(n), "instruction": f"say {n}", "input": "", "output": "la" * rng.randint(2, 20)}
            for n in range(count)
        ]
        (folder / "selected.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        summary = {"requested_tokens": requested, "template": "alpaca", "max_len_tokens": 300}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write
