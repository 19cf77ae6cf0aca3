"""Recovery by few parameters that move much: biases, norms, adapters (PERP, Zimmer et al., arXiv 2312.15230).

The default is what the authors' code trains (ZIB-IOL/PERP at 0d4554b): biases, norms, and adapters on the
head and on all matrices that were pruned. It takes rank 16, alpha 32 and a rate of 5e-4 with a line to zero;
here rank, alpha, rate and schedule are the section's. Their MaskLoRA adds B A only where a weight is not
zero; a model that was cut has no zeros to keep, so that it is plain LoRA, and between rounds of a schedule
the columns of masked inputs stay zero. A head that shares its tensor with the embeddings gets no adapter,
since merging it would move the embeddings too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.masking import read_masked
from resprout.tasks.recover.masked import PREFIX, hold_masked, leave_masked
from resprout.tasks.recover.methods.full import cast
from resprout.tasks.recover.methods.lora import merge, with_adapters, zeroed
from resprout.tasks.recover.targets import check_perp
from resprout.tasks.recover.training import numbers, trained
from resprout.tasks.recover.training_data import Recovered, TrainingData


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """Biases, norms and adapters trained, float32 meanwhile, adapters merged; what is masked stays zero.

    Raises:
        BadInput: dtype float16 on a CPU; a model that has nothing of what is to be trained.
        StageFailed: a loss or a weight that is not finite.
    """
    shape, wanted = shape_of(inputs["pruned"]), job.config.perp.train
    check_perp(job.config, shape)
    columns = read_masked(inputs["pruned"])
    layers, head = "adapters" in wanted, "head" in wanted and not shape.tied

    def student(model: Any) -> Any:
        made = with_adapters(model, job.config, data.rows, layers, head) if layers or head else model
        own = chosen(made, "biases" in wanted, "norms" in wanted)
        for parameter in own.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        leave_masked(made, columns)
        hold_masked(model, {name: one for name, one in columns.items() if name in own})
        return made

    made, history = trained(job, inputs, data, progress, student)
    count = sum(each.numel() for each in made.parameters() if each.requires_grad)
    model = zeroed(merge(made), columns) if layers or head else made
    return Recovered(cast(model, job.dtype), history, numbers(history, data, trained_params=count))


def chosen(model: Any, biases: bool, norms: bool) -> dict[str, Any]:
    """Biases outside norms, and all that norms have, of those that are asked for, by names without peft's."""
    named = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): one
        for name, one in model.named_parameters()
        if "lora_" not in name
    }
    owners = {
        name.rpartition(".")[0] for name, one in named.items() if name.endswith(".weight") and one.dim() == 1
    }
    return {
        name: one
        for name, one in named.items()
        if (norms if name.rpartition(".")[0] in owners else biases and name.endswith(".bias"))
    }
