"""Recovery by low-rank adapters (Hu et al., arXiv 2106.09685), as in the line of PASER and LLM-Pruner.

Adapters are float32 masters on a base in the storage dtype; products run in the storage dtype. Afterwards
they are merged in float32 and cast once, so that the result is a plain model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.prune.masking import read_masked
from resprout.tasks.recover.masked import leave_masked
from resprout.tasks.recover.training import numbers, trained
from resprout.tasks.recover.training_data import Adapter, Recovered, TrainingData


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """Low-rank adapters on all linear layers of attention and FFN, merged back; what is masked stays zero.

    Raises:
        BadInput: dtype float16 on a CPU.
        StageFailed: a loss or a weight that is not finite.
    """

    def student(model: Any) -> Any:
        adapted = with_adapters(model, job.config)
        leave_masked(adapted, read_masked(inputs["pruned"]))
        return adapted

    adapted, history = trained(job, inputs, data, progress, student)
    count = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    metrics = numbers(history, data, adapter_params=count)
    adapter = unmerged(adapted)
    return Recovered(merge(adapted), history, metrics, adapter)


def with_adapters(model: Any, config: RecoverConfig) -> Any:
    """The model with fresh adapters on every linear layer but the language head; only they are trained.

    B starts at zero, so the adapted model equals the given one. Experts whose weights are fused in one tensor
    get none: peft would wrap the tensor, without dropout and so that `merge` does not find it.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]
    return get_peft_model(
        model,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=linear,
            task_type="CAUSAL_LM",
        ),
    )


def unmerged(adapted: Any) -> Adapter:
    """The adapter by itself, as peft reads it; equal training gives equal data, and no path is named."""
    from peft import get_peft_model_state_dict

    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in adapted.peft_config["default"].to_dict().items()
    }
    # Peft notes where the base lay on this machine.
    config |= {"base_model_name_or_path": None, "inference_mode": True}
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return Adapter(config, {name: one.detach().cpu().clone() for name, one in sorted(tensors.items())})


@torch.no_grad()
def merge(adapted: Any) -> Any:
    """The base model with W + (alpha / r) B A, summed in float32 and cast to W's dtype once."""
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            dtype = weight.dtype
            weight.data = weight.data.float()
            module.merge()
            weight.data = weight.data.to(dtype)
    model = adapted.base_model.unload()
    return model.requires_grad_(False).eval()
