"""Inputs of an export beside the model: a plan, a recovery, and scores of the model and of its source."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.models.load import load_model, save_model
from resprout.tasks.prune.plan import Plan
from resprout.tasks.recover.methods.lora import merge, unmerged, with_adapters
from resprout.tasks.recover.stage import write_adapter


def write_plan(folder: Path) -> Path:
    size = {"params": 1000, "non_embedding_params": 600, "bytes": 2000}
    layers = ({"ffn": (0, 1, 2), "kv_groups": (0,)}, {"ffn": (0, 3, 5), "kv_groups": (1,)})
    plan = Plan(
        model_type="llama", criterion="flap", allocator="uniform", repair="bias", units=("ffn",),
        layout="uniform", round_to=1, dtype="bfloat16", dense=size, requested=size,
        reached={**size, "params": 850}, layers=layers,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(plan.model_dump_json())
    return folder


def write_recovery(pruned: Path, recovery: Path, tokenizer: Path, dtype: str = "float32") -> None:
    """A recovery of the model in `pruned` with random adapters: the adapter, and the model with it merged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = with_adapters(load_model(pruned, dtype, "cpu"), RecoverConfig(rank=2))
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.data.normal_(std=0.05)
    recovery.mkdir()
    write_adapter(unmerged(adapted), recovery / "adapter")
    save_model(merge(adapted), recovery / "model", tokenizer)


PROTOCOL = {
    "perplexity": {
        "name": "words", "metric": "words_ppl_seq32", "kl_metric": "words_kl_to_dense_seq32",
        "window_tokens": 32, "scored_tokens": 4096, "compared_tokens": 2048,
    },
    "tasks": {"own": {"items": 100, "lm_eval_version": "1.0", "few_shot": 0, "metrics": ["own_acc"]}},
    "averaged": ["own_acc"],
}  # fmt: skip
DENSE = {"words_ppl_seq32": 20.0, "own_acc": 0.5, "own_acc_stderr": 0.05, "zero_shot_mean_acc": 0.5}
FINAL = {
    "words_ppl_seq32": 25.0, "words_kl_to_dense_seq32": 0.125, "own_acc": 0.3, "own_acc_stderr": 0.05,
    "zero_shot_mean_acc": 0.3,
}  # fmt: skip


def write_scores(folder: Path, metrics: dict[str, float]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "details.json").write_text(json.dumps(PROTOCOL))
    return folder


def scores_of(place: Path) -> dict[str, Path]:
    return {
        "dense": write_scores(place / "dense", DENSE),
        "final": write_scores(place / "final", FINAL),
    }
