"""A suite beside lm-eval's own command line: the same model, tasks, rows, examples and batch.

    PYTHONPATH=tests/support python tests/benchmarks/bench_suite.py

Both in processes of their own, from start to end, in turn; lm-eval's is given its tasks in a folder and reads
its own list of tasks besides, as it always does. Chosen and written answers, with examples. The ratio is of
the medians, and at most 1.05. Exits 1 where it is over, or where an item is scored otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tiny_models import write_tiny_folder
from tiny_run import TWO_CHOICES, words

ROUNDS, ITEMS, BATCH, TOKENS, BOUND = 5, 120, 16, 24, 1.05
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["w190"], "do_sample": False, "max_gen_toks": TOKENS},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TASKS = {"chosen": TWO_CHOICES, "written": WRITTEN}
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "max_position_embeddings": 1024,
}


def ours(root: Path) -> None:
    """Answer the tasks in this process and keep the scores."""
    from resprout.configs.schema import EvaluateConfig
    from resprout.tasks.core.job import WHOLE, silent
    from resprout.tasks.evaluate.answers import answers
    from resprout.tasks.evaluate.task import all_asked
    from resprout.tasks.models.load import load_model, load_tokenizer

    tasks = [
        {"task": name, "few_shot": 3, "data": {"source": "x"}, "examples": {"source": "x"}} for name in TASKS
    ]
    config = EvaluateConfig.model_validate(
        {
            "perplexity": {"text": [{"source": "x"}]},
            "suites": [{"tasks": tasks, "batch_size": BATCH, "max_new_tokens": TOKENS}],
        }
    )
    asked = all_asked(config.placed_suites, {f"task_{name}": root / name for name in TASKS})
    model, tokenizer = load_model(root / "model", "float32", "cpu"), load_tokenizer(root / "model")
    found = answers(model, tokenizer, asked, 17, WHOLE, silent)
    scores = {name: one.right[one.headline] for name, one in found.items()}
    (root / "ours.json").write_text(json.dumps(scores))


def write(root: Path) -> None:
    """The model, and the tasks in our form and in lm-eval's."""
    write_tiny_folder(root / "model", **SHAPE)
    (root / "yamls").mkdir()
    for name, settings in TASKS.items():
        folder = root / name
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps(settings))
        files = {}
        for split, file, first, count in (
            ("validation", "rows", 0, ITEMS), ("examples", "examples", 5000, 40),
        ):  # fmt: skip
            files[split] = str(folder / f"{file}.jsonl")
            rows = [
                {
                    "question": words(40, first + at), "a": words(3, first + at + 1),
                    "b": words(3, first + at + 2), "label": at % 2,
                }
                for at in range(count)
            ]  # fmt: skip
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        theirs = settings | {
            "task": f"bench_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
            "validation_split": "validation", "fewshot_split": "examples", "num_fewshot": 3,
        }  # fmt: skip
        (root / "yamls" / f"{name}.yaml").write_text(yaml.safe_dump(theirs))


def same(root: Path) -> bool:
    """Whether every item has the score that lm-eval's command line gave it."""
    scores = json.loads((root / "ours.json").read_text())
    for name, metric in (("chosen", "acc_norm"), ("written", "exact_match")):
        log = max((root / "theirs").rglob(f"samples_bench_{name}_*.jsonl"))
        samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda one: one["doc_id"])
        if scores[name] != [float(one[metric]) for one in samples]:
            return False
    return True


def main() -> int:
    """Print both times and their ratio."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write(root)
        commands = {
            "ours": [sys.executable, __file__, str(root)],
            "lm-eval": [
                sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
                f"pretrained={root / 'model'},dtype=float32", "--device", "cpu", "--batch_size", str(BATCH),
                "--tasks", ",".join(f"bench_{name}" for name in TASKS), "--include_path", str(root / "yamls"),
                "--seed", "17", "--log_samples", "--output_path", str(root / "theirs"),
            ],
        }  # fmt: skip
        quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_CACHE": str(root / "cache")}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(ROUNDS):
            for name in sorted(commands, reverse=bool(turn % 2)):
                began = time.perf_counter()
                subprocess.run(commands[name], env={**os.environ, **quiet}, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
        ours_s, theirs_s = (statistics.median(seconds[name]) for name in ("ours", "lm-eval"))
        equal = same(root)
    ratio = ours_s / theirs_s
    sys.stdout.write(
        f"suite {ours_s:.1f} s, lm-eval's command line {theirs_s:.1f} s: ratio {ratio:.2f} (bound {BOUND}); "
        f"{'every item scored alike' if equal else 'ITEMS DIFFER'}\n"
    )
    return int(ratio > BOUND or not equal)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ours(Path(sys.argv[1]))
    else:
        sys.exit(main())
