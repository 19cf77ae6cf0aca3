from __future__ import annotations

import json
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from tiny_bytes import byte_llama, byte_tokenizer

TOPICS = {
    "cook": ["boil", "fry", "bake", "salt", "pepper", "onion", "oven", "pan", "soup", "bread"],
    "sail": ["wind", "mast", "hull", "rope", "anchor", "tide", "harbour", "deck", "storm", "knot"],
    "sums": ["sum", "product", "fraction", "triangle", "angle", "prime", "digit", "ratio", "proof", "graph"],
}


# Tiny operations on several threads mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `dense`, `pruned` (dense with noise in one layer) and `encoder`, all over bytes."""
    root = tmp_path_factory.mktemp("models")
    dense = byte_llama(0, vocab_size=259, initializer_range=0.2)
    dense.save_pretrained(root / "dense")
    torch.manual_seed(1)
    down = dense.model.layers[0].mlp.down_proj.weight.data
    down.add_(torch.randn_like(down) * 0.3)
    dense.save_pretrained(root / "pruned")
    torch.manual_seed(2)
    encoder = BertModel(
        BertConfig(
            vocab_size=259, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    encoder.save_pretrained(root / "encoder")
    for name in ("dense", "pruned", "encoder"):
        byte_tokenizer("<pad>", pad_token="<pad>").save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def pool_rows() -> list[dict[str, Any]]:
    """90 rows of three topics, 30 each, with made-up questions and answers of 3 to 12 words."""
    rng, rows = random.Random(7), []
    for number in range(90):
        topic = list(TOPICS)[number % 3]
        words = TOPICS[topic]
        row = {
            "instruction": f"{topic} {' '.join(rng.sample(words, 4))}?",
            "input": " ".join(rng.sample(words, 2)) if rng.random() < 0.3 else "",
            "output": ". ".join(" ".join(rng.sample(words, 3)) for _ in range(rng.randint(1, 4))),
            "category": topic,
            "source": "test",
        }
        row["id"] = sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
        rows.append(row)
    return rows


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    def write(rows: list[dict[str, Any]], name: str = "rows") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return folder

    return write
