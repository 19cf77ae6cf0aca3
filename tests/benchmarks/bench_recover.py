"""Recovery beside transformers' Trainer and TRL's SFTTrainer: the same weights, adapters, rows and steps.

    python tests/benchmarks/bench_recover.py [--steps 12] [--model FOLDER]

A random model of SmolLM2-135M's shape (or the one in FOLDER) and rows with the lengths of instruction data,
in steps of 1,024 tokens with LoRA of rank 8, each in a process of its own, in turn, two rounds; tokens a
second, without padding.

- Trainer is given each step's rows padded to the longest, as its collators do: at least BOUND times its
  speed, at losses that are equal step by step.
- SFTTrainer packs the same rows (`packing=True`); where trl is not installed it is left out. At least its
  speed.
- Distillation from a teacher on disk: at least DISK of the speed without one; the dense model beside the
  student is shown too.

Exits 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import own_generator
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.methods.lora import with_adapters
from resprout.tasks.recover.teachers import Online
from resprout.tasks.recover.training import fit
from resprout.tasks.recover.training_data import Source, TrainingData, in_steps, mixed

BOUND, DISK = 1.8, 0.9
STEP, ROUNDS, RATE = 1024, 2, 1e-3
SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip


def rows(count: int, vocabulary: int) -> Examples:
    """Rows of 45 to 256 tokens, most of them short: a prompt of 40 and more, and a response."""
    draw = np.random.default_rng(7)
    made = []
    for _ in range(count):
        prompt, response = int(40 + draw.exponential(25)), int(5 + draw.exponential(35))
        ids = draw.integers(3, vocabulary, size=min(256, prompt + response)).tolist()
        made.append(Encoded(ids[:prompt], ids[prompt:]))
    return Examples.written([("rows", made)])


def steps_of(examples: Examples, steps: int) -> TrainingData:
    whole = Source(np.arange(len(examples)), 1.0)
    order = mixed(examples.lengths, [whole], steps * STEP, 17)
    return TrainingData(examples, in_steps(order, examples.lengths, STEP)[:steps], 0, steps, [])


def ours(model: Any, data: TrainingData, teacher: Any = None, **changes: Any) -> tuple[float, list[float]]:
    """Seconds and losses."""
    config = RecoverConfig(
        rank=8, dropout=0.0, learning_rate=RATE, warmup_ratio=0.0, batch_tokens=STEP,
        distill_weight=0.0 if teacher is None else 1.0, **changes,
    )  # fmt: skip
    with own_generator(17, "cpu"):
        adapted = with_adapters(copy.deepcopy(model), config)
        began = time.perf_counter()
        history = fit(adapted, teacher, Job(config, dtype="float32"), data, silent)
    return time.perf_counter() - began, [entry["cross_entropy"] for entry in history]


def trainer(model: Any, data: TrainingData) -> tuple[float, list[float]]:
    """The same with transformers' Trainer, each step's rows padded to the longest of them."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    def padded(step: list[int]) -> dict[str, torch.Tensor]:
        longest = max(len(data.rows[one]) for one in step)
        ids, labels, mask = (torch.full((len(step), longest), fill) for fill in (0, -100, 0))
        for row, one in enumerate(step):
            example, size = data.rows[one], len(data.rows[one])
            ids[row, :size] = torch.tensor(example.prompt_ids + example.response_ids)
            labels[row, len(example.prompt_ids) : size] = torch.tensor(example.response_ids)
            mask[row, :size] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    config = RecoverConfig(rank=8, dropout=0.0)
    with own_generator(17, "cpu"), tempfile.TemporaryDirectory() as folder:
        adapted = with_adapters(copy.deepcopy(model), config)
        made = Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=folder, max_steps=len(data.steps), per_device_train_batch_size=1,
                train_sampling_strategy="sequential", learning_rate=RATE, lr_scheduler_type="cosine",
                weight_decay=0.0, max_grad_norm=1.0, seed=17, use_cpu=True, logging_steps=1,
                save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
            ),
            train_dataset=[padded(step) for step in data.steps],  # type: ignore[arg-type]
            data_collator=lambda items: items[0],
            callbacks=[Losses()],
        )  # fmt: skip
        made.remove_callback(PrinterCallback)
        began = time.perf_counter()
        made.train()
    return time.perf_counter() - began, losses


def sft(model: Any, data: TrainingData) -> tuple[float, list[float]]:
    """The same rows with TRL's SFTTrainer, which packs them into sequences of a step's tokens."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    # The rows are token ids already, but it wants a tokenizer, and looks for one where the model came from.
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), pad_token="x", eos_token="x"
    )
    used = [one for step in data.steps for one in step]
    config = RecoverConfig(rank=8, dropout=0.0)
    given = Dataset.from_list([
        {
            "input_ids": data.rows[one].prompt_ids + data.rows[one].response_ids,
            "completion_mask": [0] * len(data.rows[one].prompt_ids) + [1] * len(data.rows[one].response_ids),
        }
        for one in used
    ])  # fmt: skip
    with own_generator(17, "cpu"), tempfile.TemporaryDirectory() as folder:
        made = SFTTrainer(
            model=with_adapters(copy.deepcopy(model), config),
            args=SFTConfig(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=1, packing=True,
                max_length=STEP, learning_rate=RATE, use_cpu=True, save_strategy="no", report_to="none",
                disable_tqdm=True, gradient_checkpointing=False, bf16=False,
            ),
            train_dataset=given,
            processing_class=words,
        )  # fmt: skip
        began = time.perf_counter()
        made.train()
    return time.perf_counter() - began, []


def contend(name: str, given: argparse.Namespace) -> None:
    """Train as one contestant in this process, and print seconds, tokens and losses."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if given.model:
        model: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.requires_grad_(False)
    if name.startswith("ours"):
        # As the stage has it where it loads its model.
        keep_freed_memory()
    data = steps_of(rows(given.steps * 16, model.config.vocab_size), given.steps)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Any] = {
            "ours": lambda: ours(model, data),
            "Trainer": lambda: trainer(model, data),
            "ours, teacher on disk": lambda: ours(
                model, data, asked(copy.deepcopy(model), data, Path(folder)), distill={"teacher": "disk"}
            ),
            "ours, teacher beside": lambda: ours(model, data, Online(copy.deepcopy(model))),
            "SFTTrainer": lambda: sft(model, data),
        }
        seconds, losses = runs[name]()
    print(json.dumps([seconds, data.tokens, losses]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--contend")
    given = parser.parse_args()
    if given.contend:
        contend(given.contend, given)
        return 0
    names = ["ours", "Trainer", "ours, teacher on disk", "ours, teacher beside"]
    names += ["SFTTrainer"] if importlib.util.find_spec("trl") is not None else []
    speeds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name in names:
            more = [] if given.model is None else ["--model", str(given.model)]
            done = subprocess.run(
                [sys.executable, __file__, "--steps", str(given.steps), "--contend", name, *more],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            seconds, tokens, losses[name] = json.loads(done.stdout.splitlines()[-1])
            speeds[name].append(tokens / seconds)
    speed = {name: statistics.median(each) for name, each in speeds.items()}
    for name, each in speeds.items():
        print(f"{name}: {speed[name]:.0f} tokens/s ({min(each):.0f} to {max(each):.0f})")
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["Trainer"], strict=True))
    print(f"losses of ours and of Trainer are at most {apart:.1e} apart")
    bounds = {
        f"Trainer (at least {BOUND})": (speed["ours"] / speed["Trainer"], BOUND),
        f"without a teacher (at least {DISK})": (speed["ours, teacher on disk"] / speed["ours"], DISK),
    }
    if "SFTTrainer" in speed:
        bounds["SFTTrainer (at least 1)"] = (speed["ours"] / speed["SFTTrainer"], 1.0)
    for name, (ratio, bound) in bounds.items():
        print(f"{'ok' if ratio >= bound else 'MISSED'}: {ratio:.2f} of {name}")
    missed = any(ratio < bound for ratio, bound in bounds.values())
    return 1 if missed or not apart < 1e-2 else 0


def asked(model: Any, data: TrainingData, folder: Path) -> Any:
    """The teacher's words on disk, by the functions that the stage uses."""
    from safetensors.numpy import save_file

    from resprout.tasks.data.response import head
    from resprout.tasks.recover import teacher_on_disk as disk
    from resprout.tasks.recover.batches import collate, target_states

    index = disk.Index.of(data)
    found = disk.empty(int(index.ends[-1]), 64)
    with torch.no_grad():
        for place, one in enumerate(index.examples.tolist()):
            batch = collate(data.rows, [[one]], data.everything, pack=False)
            logs = head(model, target_states(model, batch)).log_softmax(-1)
            found.put(disk.Top.of(logs, 64), [slice(*index.span(place))])
    disk.write(folder, 0, found, model.config.vocab_size)
    save_file(index._asdict(), folder / disk.INDEX)
    about = {"digest": data.rows.digest(), "shards": [int(index.ends[-1])]}
    (folder / disk.ABOUT).write_text(json.dumps(about))
    return disk.Disk(folder, data.rows)


if __name__ == "__main__":
    sys.exit(main())
