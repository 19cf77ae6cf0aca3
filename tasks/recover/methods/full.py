"""Recovery by training all weights, as after random_init (Liu et al., arXiv 1810.05270).

Weights are float32 masters while they are trained, products run in the storage dtype, and the result is cast
to it once. Masters, gradients and AdamW's two moments take 16 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.prune.masking import read_masked
from resprout.tasks.recover.masked import hold_masked
from resprout.tasks.recover.training import numbers, trained
from resprout.tasks.recover.training_data import Recovered, TrainingData


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """All weights, float32 while they are trained, 16 bytes a parameter; masked columns stay zero.

    Raises:
        BadInput: dtype float16 on a CPU.
        StageFailed: a loss or a weight that is not finite.
    """

    def student(model: Any) -> Any:
        made = masters(model)
        hold_masked(made, read_masked(inputs["pruned"]))
        return made

    model, history = trained(job, inputs, data, progress, student)
    count = sum(each.numel() for each in model.parameters())
    return Recovered(cast(model, job.dtype), history, numbers(history, data, trained_params=count))


def masters(model: Any) -> Any:
    """The model with its weights in float32, all to be trained; buffers stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model.requires_grad_()


def cast(model: Any, dtype: str) -> Any:
    """The model with its weights in `dtype`, none of them to be trained any more."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
        parameter.grad = None
    return model.requires_grad_(False).eval()
