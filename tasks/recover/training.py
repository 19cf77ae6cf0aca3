"""The training loop: transformers' Trainer on batches that are made beforehand."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.data.response import Batch, collate, head, response_states
from resprout.tasks.models.load import load_model, own_generator
from resprout.tasks.recover.training_data import TrainingData


def trained(
    job: Job[RecoverConfig],
    inputs: Mapping[str, Path],
    data: TrainingData,
    progress: Progress,
    student: Callable[[Any], Any],
) -> tuple[Any, list[dict[str, float]]]:
    """The trained form of what `student` makes of the pruned model, and one history entry a step.

    Raises:
        BadInput: dtype float16 on a CPU.
        StageFailed: a loss or a weight that is not finite.
    """
    if job.dtype == "float16" and job.device == "cpu":
        raise BadInput("recover cannot train in float16 on a CPU; set model.dtype: bfloat16")
    model: Any = load_model(inputs["pruned"], job.dtype, job.device, job.trust_remote_code)
    dense: Any = None
    if job.config.distill_weight > 0:
        dense = load_model(inputs["dense"], job.dtype, job.device, job.trust_remote_code)
    with own_generator(job.seed, job.device):
        made = student(model)
        return made, fit(made, dense, job, data, progress)


def numbers(history: list[dict[str, float]], data: TrainingData, **more: float) -> dict[str, float]:
    """Metrics of a training, and `more`."""
    tail = history[-max(1, len(history) // 10) :]
    return {
        "recovery_steps": len(history),
        "recovery_tokens": data.tokens,
        "recovery_rows": len(data.rows),
        "padding_share": data.padding,
        "loss_first": history[0]["loss"],
        "loss_last_tenth": sum(entry["loss"] for entry in tail) / len(tail),
        **more,
    }


def fit(
    student: Any, dense: Any, job: Job[RecoverConfig], data: TrainingData, progress: Progress
) -> list[dict[str, float]]:
    """Train the parameters of `student` that require gradients; one history entry a step.

    It is a model, or one with adapters around it.

    AdamW without weight decay; a warm-up, then a cosine to zero at the end of the whole recovery, of which
    this may be a part. An entry holds step, counted from the whole's beginning, loss, cross_entropy,
    distillation, the step's tokens without padding, learning_rate and grad_norm (before clipping).

    Raises:
        StageFailed: a loss that is not finite, with its step.
    """
    steps = len(data.batches)
    batches = [
        {"parts": [collate([data.rows[index] for index in part])._asdict() for part in step]}
        for step in data.batches
    ]
    history = _History(progress, steps, data.before)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _ResponseTrainer(
            model=student,
            args=_arguments(job, steps, folder),
            train_dataset=batches,
            data_collator=_only,
            callbacks=[history],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.teach(dense, job, data, history)
        # Under autocast peft's own cast of each input to the adapters' float32 would be undone at once.
        with disable_input_dtype_casting(student, active=job.dtype != "float32"):
            trainer.train()
    if not all(torch.isfinite(each).all() for each in student.parameters() if each.requires_grad):
        raise StageFailed(_not_finite("a trained weight", data.before + steps, job.config))
    return history.entries


def _arguments(job: Job[RecoverConfig], steps: int, folder: str) -> TrainingArguments:
    config = job.config
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        weight_decay=0.0,
        optim="adamw_torch",
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=job.device == "cpu",
        fp16=job.dtype == "float16",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=[],
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # the head is run apart from the body, which DataParallel cannot split
    return arguments


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A data set's item is a whole batch already."""
    return items[0]


class _ResponseTrainer(Trainer):
    """Trainer whose loss is that of response tokens, with the dense model as teacher."""

    def teach(self, dense: Any, job: Job[RecoverConfig], data: TrainingData, history: _History) -> None:
        self.dense, self.job, self.data, self.history = dense, job, data, history

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The whole recovery's schedule, from where this part of it begins."""
        before, whole = self.data.before, self.data.whole
        used = optimizer or self.optimizer
        for group in used.param_groups:
            group["initial_lr"] = group["lr"]
        warmup = math.ceil(self.job.config.warmup_ratio * whole)
        self.lr_scheduler = get_cosine_schedule_with_warmup(used, warmup, whole, last_epoch=before - 1)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        config, dtype = self.job.config, getattr(torch, self.job.dtype)
        parts = [Batch(**part) for part in inputs["parts"]]
        student = self.accelerator.unwrap_model(model)
        if isinstance(student, PeftModel):
            student = student.get_base_model()
        with torch.autocast(parts[0].input_ids.device.type, dtype, enabled=dtype != torch.float32):
            loss = response_loss(
                student, parts, self.dense, config.distill_weight, config.distill_temperature
            )
        if not torch.isfinite(loss.total):
            raise StageFailed(_not_finite("the loss", self.data.before + self.state.global_step + 1, config))
        self.history.losses = {
            "loss": loss.total.item(),
            "cross_entropy": loss.cross_entropy.item(),
            "distillation": loss.distillation.item(),
            "tokens": float(sum(int(part.attention_mask.sum()) for part in parts)),
        }
        return (loss.total, None) if return_outputs else loss.total


class _History(TrainerCallback):
    """Keeps what each step reports and shows the progress."""

    def __init__(self, progress: Progress, steps: int, before: int) -> None:
        self.progress, self.steps, self.before = progress, steps, before
        self.losses: dict[str, float] = {}
        self.entries: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "grad_norm" not in logs:  # the summary at the end
            return
        entry = {"step": self.before + state.global_step, **self.losses}
        entry |= {name: float(logs[name]) for name in ("learning_rate", "grad_norm")}
        self.entries.append(entry)
        self.progress(state.global_step, self.steps, "steps")


def _not_finite(what: str, step: int, config: RecoverConfig) -> str:
    return (
        f"{what} is not finite at step {step} of recovery with learning_rate {config.learning_rate:g}; lower "
        "recover.learning_rate or raise recover.warmup_ratio, and check that the pruned model's own scores "
        "are finite"
    )


HEAD_ELEMENTS = 2**26
"""Logits (tokens * vocabulary) held for the backward pass; beyond, they are computed again piece by piece."""


class Loss(NamedTuple):
    """Scalars, means over the response tokens of a step; `distillation` is 0 without a dense model."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


def response_loss(
    student: Any, parts: Sequence[Batch], dense: Any = None, weight: float = 0.0, temperature: float = 1.0
) -> Loss:
    """(1 - w) CE + w T^2 KL(dense || student) over response tokens; prompts and padding do not count.

    Args:
        student: The model being trained.
        parts: Batches that are computed one by one and count as one.
        dense: The original model; not run where w is 0.
        weight: w in [0, 1].
        temperature: T, of both distributions in the KL; T^2 keeps the gradient's size.
    """
    with_dense = dense if weight > 0 else None
    sums = torch.stack([_part_sums(student, batch, with_dense, temperature) for batch in parts]).sum(0)
    cross_entropy, distillation = sums / sum(len(batch.targets) for batch in parts)
    total = (1 - weight) * cross_entropy + weight * distillation if weight > 0 else cross_entropy
    return Loss(total, cross_entropy, distillation)


def _part_sums(student: Any, batch: Batch, dense: Any, temperature: float) -> Tensor:
    """`_sums` over all response tokens of a batch, the head in pieces where its output would be large."""
    states = response_states(student, batch)
    dense_states = None
    if dense is not None:
        with torch.no_grad():
            dense_states = response_states(dense, batch)
    count = len(batch.targets)
    size = max(1, HEAD_ELEMENTS // student.get_output_embeddings().weight.shape[0])
    pieces = list[Tensor]()
    for start in range(0, count, size):
        given = (
            student,
            states[start : start + size],
            batch.targets[start : start + size],
            dense,
            None if dense_states is None else dense_states[start : start + size],
            temperature,
        )
        whole = count <= size or not torch.is_grad_enabled()
        pieces.append(_sums(*given) if whole else checkpoint(_sums, *given, use_reentrant=False))
    return torch.stack(pieces).sum(0)


def _sums(
    student: Any,
    states: Tensor,
    targets: Tensor,
    dense: Any,
    dense_states: Tensor | None,
    temperature: float,
) -> Tensor:
    """Sums over tokens of (cross-entropy, T^2 KL): [2]."""
    logits = head(student, states)
    cross_entropy = functional.cross_entropy(logits, targets, reduction="sum")
    if dense_states is None:
        return torch.stack([cross_entropy, torch.zeros_like(cross_entropy)])
    with torch.no_grad():
        teacher = functional.log_softmax(head(dense, dense_states) / temperature, -1)
    learner = functional.log_softmax(logits / temperature, -1)
    divergence = functional.kl_div(learner, teacher, reduction="sum", log_target=True)
    return torch.stack([cross_entropy, temperature**2 * divergence])
