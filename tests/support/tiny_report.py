"""Inputs of a report as small as can be, with text in them that is markup elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from resprout.tasks.core.job import Job
from resprout.tasks.report.stage import ReportConfig

DENSE = {
    "params": 200.0, "non_embedding_params": 100.0, "bytes": 4e6, "w_ppl_seq8": 20.0, "t_acc": 0.5,
    "t_acc_stderr": 0.05, "zero_shot_mean_acc": 0.5, "prefill8_tokens_per_s": 10.0, "peak_memory_mb": 50.0,
}  # fmt: skip
PRUNED = {
    **DENSE,
    "params": 150.0,
    "w_ppl_seq8": 30.0,
    "w_ppl_seq8_ratio": 1.5,
    "w_ppl_seq8_ratio_low": 1.4,
    "w_ppl_seq8_ratio_high": 1.6,
    "t_acc": 0.4,
    "t_acc_change": -0.1,
    "t_acc_change_low": -0.15,
    "t_acc_change_high": -0.05,
    "w_kl_to_dense_seq8": 0.25,
    "prefill8_tokens_per_s": 15.0,
    "prefill8_tokens_per_s_ratio": 1.5,
    "prefill8_tokens_per_s_ratio_low": 1.25,
    "prefill8_tokens_per_s_ratio_high": 1.75,
}
HOSTILE = "<script>alert(1)</script> [x](http://evil) **b** " + "w" * 400 + " \u05e9\u05dc\u05d5\u05dd"
ANSWERS = {
    "answers": [{"prompt": HOSTILE, "answer": f"{HOSTILE}\n# heading\n| a |", "cut": True}],
    "chat": True,
    "note": "",
}
DETAILS = {"averaged": ["t_acc"]}
RECOVERED = {
    **PRUNED,
    "w_ppl_seq8": 25.0,
    "w_ppl_seq8_ratio": 1.25,
    "w_ppl_seq8_ratio_low": 0.98,
    "w_ppl_seq8_ratio_high": 1.52,
    "t_acc_change_high": 0.01,
    "prefill8_tokens_per_s_ratio_low": 0.75,
}


def write(folder: Path, **files: Any) -> Path:
    """A folder with JSON files: name_json=..., and lines of JSON: name_jsonl=[...]."""
    folder.mkdir()
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        text = "\n".join(json.dumps(row) for row in content) if ending == "jsonl" else json.dumps(content)
        (folder / f"{stem}.{ending}").write_text(text)
    return folder


def scores(folder: Path) -> Path:
    """Scores of four FFN channels in each of two layers."""
    folder.mkdir()
    values = np.array([[4.0], [2.0], [1.0], [1.0]], dtype=np.float32)
    save_file({"layers.00.ffn": values, "layers.01.ffn": values[::-1].copy()}, folder / "scores.safetensors")
    return folder


def write_inputs(tmp_path: Path) -> dict[str, Path]:
    """Folders of all inputs under `tmp_path`, by role."""
    size = {"params": 200, "non_embedding_params": 100, "bytes": 400}
    plan = {
        "criterion": "flap", "units": ["ffn"], "allocator": "uniform", "repair": "least_squares",
        "warnings": ["wide"],
        "dense": size, "requested": size, "reached": size,
        "layers": [{"ffn": [0, 1], "kv_groups": [0]}, {"ffn": [1, 2], "kv_groups": [0]}],
    }  # fmt: skip
    shape = {
        "model_type": "llama", "hidden_size": 8, "vocab_size": 10, "num_attention_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 4, "num_key_value_heads": 1,
    }  # fmt: skip
    chosen = {"id": "r1", "instruction": "Say <b>hi</b> | now", "input": "", "output": "hi", "tokens": 9}
    decision = {"id": "r1", "cluster": 0, "accepted": True, "reason": "rank 1 of cluster 0"}
    cluster = {"cluster": 0, "rows": 5, "cds": 0.1, "selected_rows": 1, "reject_rate": 0.2}
    summary = {"requested_tokens": 10, "filled_tokens": 9, "warnings": [], "clusters": [cluster]}
    exports = [{"format": "hf", "path": "hf", "bytes": 400, "verified": True, "max_abs_logit_diff": 0.0}]
    gate = {"passed": True, "checks": [{"name": "max_kl_nats", "value": 0.25, "bound": 0.3, "passed": True}]}
    looked = [
        {"step": step, "loss": 2.5, "tokens": 9, "held_out": 2 + (step + 1) ** -0.5 + 0.004 * (step % 3)}
        for step in range(1, 13)
    ]
    looked[0]["held_out_before"] = 3.0
    rungs = [
        {"method": HOSTILE, "seconds": 1.5, "tokens": 108.0, "held_out_first": 3.0, "held_out_last": 2.28},
        {"method": "distill", "skipped": "the gate is met"},
    ]
    return {
        "source": write(
            tmp_path / "source",
            config_json=shape,
            source_json={"source_bytes": 1_000_000, "source_format": "gguf:Q4_1"},
        ),
        "dense": write(tmp_path / "dense", metrics_json=DENSE, details_json=DETAILS, answers_json=ANSWERS),
        "pruned": write(
            tmp_path / "pruned",
            metrics_json=PRUNED,
            details_json={"layer_distances": [0.1, 0.2], "sources": {"a/x": {"kl": 0.1}, "b/x": {"kl": 0.3}}},
            answers_json=ANSWERS,
        ),
        "recovered": write(
            tmp_path / "recovered",
            metrics_json=RECOVERED,
            details_json={"layer_distances": [0.05, 0.1]},
            answers_json=ANSWERS,
        ),
        "plan": write(tmp_path / "plan", plan_json=plan),
        "scores": scores(tmp_path / "scores"),
        "export": write(tmp_path / "export", exports_json=exports),
        "gate": write(tmp_path / "gate", gate_json=gate),
        "selection": write(
            tmp_path / "selection", summary_json=summary, selected_jsonl=[chosen], decisions_jsonl=[decision]
        ),
        "recovery_1": write(
            tmp_path / "recovery_1",
            history_jsonl=[{"step": 1, "loss": 2.0, "tokens": 9}, {"step": 2, "loss": 1.5, "tokens": 8}],
        ),
        "recovery_2": write(tmp_path / "recovery_2", history_jsonl=looked, metrics_json={}),
        "recovery": write(tmp_path / "recovery", metrics_json={"recovery_steps": 0}, ladder_json=rungs),
    }


SETTINGS = ReportConfig(
    name="tiny",
    config={
        "name": "tiny",
        "seed": 17,
        "model": {"source": "hf://org/name@main"},
        "register": {"tags": {"note": "a\n```\n\n<img src=q>"}},
    },
    command="resprout run tiny.yaml",
    digests={"acquire model": "cd" * 32, "plan": "ab" * 32},
    models={"dense": None, "pruned": None, "recovered": None},
)
JOB = Job(SETTINGS, digests={"source": "cd" * 32})
