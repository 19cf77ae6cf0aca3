"""A whole run small enough for tests: a tiny model, its data, and a config that touches every stage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

VOCAB = 256
TWO_CHOICES: dict[str, Any] = {
    "task": "own",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{[a, b]}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
"""A zero-shot task over rows with question, a, b and label."""


def words(count: int, seed: int) -> str:
    """Words of the tiny tokenizer with some order in them: each is near the one before."""
    draw, at, found = random.Random(seed), 40, []
    for _ in range(count):
        at = 4 + (at + draw.choice((1, 1, 2, 3, 50)) - 4) % (VOCAB - 4)
        found.append(f"w{at}")
    return " ".join(found)


def write_data(root: Path) -> None:
    """Calibration and evaluation text, an instruction pool and a zero-shot task, in the tiny vocabulary."""
    root.mkdir(parents=True, exist_ok=True)
    documents = [{"text": words(120, seed), "source": "made"} for seed in range(30)]
    (root / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents[:20]))
    (root / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents[20:]))
    pool = [
        {
            "instruction": words(6, 100 + index),
            "input": words(4, 300 + index) if index % 2 else "",
            "output": words(8, 500 + index),
            "category": f"c{index % 3}",
        }
        for index in range(60)
    ]
    (root / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    task = [
        {"question": words(5, 700 + i), "a": words(2, 800 + i), "b": words(2, 900 + i), "label": i % 2}
        for i in range(12)
    ]
    (root / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    (root / "own.yaml").write_text(yaml.safe_dump(TWO_CHOICES))


def config(**changes: Any) -> dict[str, Any]:
    """A run config, to lie beside the data of `write_data` and a model folder called model."""
    base: dict[str, Any] = {
        "name": "tiny",
        "seed": 17,
        "model": {"source": "model", "dtype": "float32", "device": "cpu"},
        "calibrate": {
            "method": "cola",
            "text": [{"source": "calibration.jsonl"}],
            "samples": 8,
            "seq_len_tokens": 16,
            "projection_dim": 8,
        },
        "prune": {
            "method": "flap",
            "units": ["ffn"],
            "layout": "uniform",
            "target": {"params_ratio": 0.85},
            "round_to": 8,
            "repair": "least_squares",
        },
        "select": {
            "method": "paser",
            "pool": [{"source": "pool.jsonl"}],
            "budget_ratio": 0.5,
            "max_len_tokens": 128,
            "paser": {"clusters": 3, "embedder": "tfidf"},
        },
        "recover": {"rank": 2, "batch_tokens": 512, "distill_weight": 0.5},
        "evaluate": {
            "perplexity": {
                "name": "words",
                "text": [{"source": "evaluation.jsonl"}],
                "window_tokens": 32,
                "limit_tokens": 512,
            },
            "zero_shot": {
                "tasks": [{"task": "own.yaml", "data": {"source": "task.jsonl"}}],
                "limit": 12,
            },
        },
        "measure": {"prefill_tokens": 16, "decode_tokens": 4, "repeats": 3, "threads": 1},
        "gate": {"max_perplexity_ratio": 10.0, "max_params_ratio": 0.86},
        "export": {"prompts": [words(4, seed) for seed in range(5)], "greedy_tokens": 4},
        "register": {"name": "tiny-pruned", "alias": "candidate"},
    }
    return {**base, **changes}


def write_run(root: Path, **changes: Any) -> Path:
    """Model, data and config under `root`; the path of the config."""
    from tiny_models import write_tiny_folder

    if not (root / "model").exists():
        write_data(root)
        write_tiny_folder(root / "model", dtype="float32")
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(config(**changes)))
    return path
