"""Recovery by low-rank adapters (Hu et al., arXiv 2106.09685), as in the line of PASER and LLM-Pruner.

Adapters are float32 masters on a base in the storage dtype; products run in the storage dtype. Afterwards
they are merged in float32 and cast once, so that the result is a plain model.

Variants, by peft: rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), PiSSA (arXiv 2404.02948), OLoRA
(arXiv 2406.01775), CorDA (arXiv 2406.05223) and EVA (arXiv 2410.07170), the last two by the recovery rows.
PiSSA, OLoRA and CorDA take the adapters' first product out of the base; the adapter that is kept goes onto
the base as it was, with the first factors, negative, beside the trained ones: twice the rank.

`ranks: cfsp` gives layers ranks by CFSP's coarse importance (arXiv 2409.13199), the mean angle between what
comes into a layer and what leaves it. The authors' code has no part that trains, so the shares are those of
the allocator `cfsp_softmax`. Structured pruning adapters (arXiv 2211.10155) are these adapters on a model
that is cut before it is trained: their rows and columns are those of the channels that are left.
`ranks: increlora` lets them grow in training (`growth.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.data.response import Batch, collate
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.forward import run_layerwise
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.allocators.cfsp_softmax import CfspSoftmax, budgets
from resprout.tasks.prune.masking import Columns, read_masked
from resprout.tasks.prune.residual_stream import cosines
from resprout.tasks.recover.growth import ADAPTER, grows, plain, room
from resprout.tasks.recover.masked import leave_masked
from resprout.tasks.recover.targets import check_fits, ends_with, is_fused, matrices
from resprout.tasks.recover.training import numbers, trained
from resprout.tasks.recover.training_data import Adapter, Recovered, TrainingData

SPLITS = ("pissa", "olora", "corda")
"""Initialisations that move a part of the base into the adapters."""
LOOKED_AT = 128
"""Rows by which eva and corda start and cfsp measures."""


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """Low-rank adapters on all linear layers of attention and FFN, merged back; what is masked stays zero.

    Raises:
        BadInput: dtype float16 on a CPU; settings that the model does not go with.
        StageFailed: a loss or a weight that is not finite.
    """
    columns = read_masked(inputs["pruned"])
    check_fits(job.config, shape_of(inputs["pruned"]), bool(columns))
    first: dict[str, Tensor] = {}

    def student(model: Any) -> Any:
        adapted = with_adapters(model, job.config, data.rows)
        leave_masked(adapted, columns)
        first.update(_factors(adapted) if job.config.lora.init in SPLITS else {})
        return adapted

    adapted, history = trained(job, inputs, data, progress, student)
    adapter = unmerged(adapted, first)
    if grows(adapted):
        count = sum(each.numel() for each in adapter.tensors.values())
    else:
        count = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    metrics = numbers(history, data, adapter_params=count)
    return Recovered(zeroed(merge(adapted), columns), history, metrics, adapter)


def with_adapters(
    model: Any, config: RecoverConfig, rows: Sequence[Encoded] = (), layers: bool = True, head: bool = False
) -> Any:
    """The model with fresh adapters on its targets; only they are trained, and it computes what it did.

    `rows` are needed by init eva and corda, and by ranks cfsp. Fused experts get adapters where the section
    says so, the language head where `head` does, the matrices of `layers` unless it is false; routers none.
    """
    from peft import EvaConfig, LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    shape, lora = shape_of(model.config.to_dict()), config.lora
    names = matrices(shape, config) if layers else {}
    ranks = _ranks(model, config, names, rows)
    init: Any = {"default": True, "corda": "corda"}.get(lora.init, lora.init)
    fused = [name for name in names if is_fused(shape, name)]
    ends = [name for name, one in model.named_modules() if head and one is model.get_output_embeddings()]
    modules = [name for name in names if name not in fused] + ends
    if lora.ranks == "increlora":
        return _that_grow(model, config, modules)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules,
        target_parameters=fused or None,
        rank_pattern=ranks,
        alpha_pattern={name: _alpha(config, rank) for name, rank in ranks.items()},
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=init,
        eva_config=EvaConfig() if lora.init == "eva" else None,
        corda_config=CordaConfig() if lora.init == "corda" else None,
        task_type="CAUSAL_LM",
    )
    seen = rows[:LOOKED_AT]
    if lora.init == "corda":
        preprocess_corda(model, settings, run_model=lambda: _run(model, seen))
    adapted = get_peft_model(model, settings)
    if lora.init == "eva":
        batches = [
            {"input_ids": one.input_ids, "attention_mask": one.attention_mask} for one in _batches(seen)
        ]
        initialize_lora_eva_weights(
            adapted,
            batches,
            prepare_model_inputs_fn=lambda given, config: given["attention_mask"].bool().flatten(),
            # Some families flatten rows and tokens in front of modules, which peft's own does not expect.
            prepare_layer_inputs_fn=lambda seen, real, name: seen[0].flatten(0, -2)[real],
            show_progress_bar=False,
        )
    return adapted


def _that_grow(model: Any, config: RecoverConfig, modules: list[str]) -> Any:
    """Adapters of components with a strength each; in peft those of AdaLoRA, whose own rule is left out."""
    from peft import AdaLoraConfig, get_peft_model
    from peft.tuners.adalora.layer import SVDLinear

    settings = AdaLoraConfig(
        init_r=room(config.rank),
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules,
        fan_in_fan_out=shape_of(model.config.to_dict()).family.transposed,
        total_step=1,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, settings)
    for module in adapted.modules():
        if isinstance(module, SVDLinear):
            # What peft divides alpha by; its cast to float32 lets it be trained.
            module.ranknum[ADAPTER].requires_grad_(False).fill_(float(config.rank))
    return adapted


def _alpha(config: RecoverConfig, rank: int) -> float:
    """The alpha with which an adapter of this rank has the scale of one of `config.rank`."""
    share = rank / config.rank
    return config.alpha * (math.sqrt(share) if config.lora.rslora else share)


def _batches(rows: Sequence[Encoded]) -> Iterator[Batch]:
    ordered = sorted(rows, key=len)
    return (collate(ordered[at : at + 4]) for at in range(0, len(ordered), 4))


@torch.no_grad()
def _run(model: Any, rows: Sequence[Encoded]) -> None:
    """One row at a time: what watches takes no padding."""
    for row in rows:
        model(torch.tensor([row.prompt_ids + row.response_ids], device=model.device), use_cache=False)


def _ranks(
    model: Any, config: RecoverConfig, names: Mapping[str, int], rows: Sequence[Encoded]
) -> dict[str, int]:
    """Ranks of the matrices that do not have `config.rank`."""
    if config.lora.ranks == "cfsp":
        shape = shape_of(model.config.to_dict())
        shared = share_out(config.rank * shape.layers, budgets(_angles(model, rows), CfspSoftmax.steepness))
        layer = {name: int(name.removeprefix(shape.family.layer_prefix).partition(".")[0]) for name in names}
        return {name: min(shared[layer[name]], smaller) for name, smaller in names.items()}
    pattern = config.lora.rank_pattern.items()
    found = {name: [rank for end, rank in pattern if ends_with(name, end)] for name in names}
    return {name: ranks[0] for name, ranks in found.items() if ranks}


def share_out(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of at least 1, together `total`, as close to the shares as they can be."""
    spare, whole = total - len(shares), sum(shares)
    exact = [spare * one / whole for one in shares]
    given = [1 + int(one) for one in exact]
    order = sorted(range(len(shares)), key=lambda place: (int(exact[place]) - exact[place], place))
    for place in order[: total - sum(given)]:
        given[place] += 1
    return given


def _angles(model: Any, rows: Sequence[Encoded]) -> list[float]:
    """The mean angle between what comes into each layer and what leaves it, in units of pi."""
    batches = list(_batches(rows[:LOOKED_AT]))
    real = [one.attention_mask.bool() for one in batches]
    angles: list[float] = []
    for step in run_layerwise(model, [one.input_ids for one in batches]):
        before = list(step.hidden)
        turned = [
            cosines(x[there], y[there]).arccos() for there, x, y in zip(real, before, step.run(), strict=True)
        ]
        angles.append(torch.cat(turned).double().mean().item() / math.pi)
    return angles


def _factors(adapted: Any) -> dict[str, Tensor]:
    """Copies of the adapter's tensors by peft's names."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: one.detach().cpu().clone() for name, one in sorted(tensors.items())}


def unmerged(adapted: Any, first: Mapping[str, Tensor] | None = None) -> Adapter:
    """The adapter by itself, as peft reads it; equal training gives equal data, and no path is named.

    `first` are the factors whose product was taken out of the base when training began: the adapter is made
    to go onto the base as it was before, B A - B0 A0 as one product.
    """
    from peft import LoraConfig

    given, tensors = adapted.peft_config["default"], dict[str, Tensor]()
    if grows(adapted):
        patterns, tensors = plain(adapted)
        given = LoraConfig(
            lora_alpha=given.lora_alpha,
            lora_dropout=given.lora_dropout,
            target_modules=given.target_modules,
            fan_in_fan_out=given.fan_in_fan_out,
            task_type=given.task_type,
            **patterns,
        )
    config: dict[str, Any] = {
        key: sorted(value) if isinstance(value, set) else value for key, value in given.to_dict().items()
    }
    # Peft notes where the base lay on this machine, and would start from the rows or the base again.
    config |= {"base_model_name_or_path": None, "inference_mode": True}
    config |= {"init_lora_weights": True, "eva_config": None, "corda_config": None}
    tensors = tensors or _factors(adapted)
    if first:
        for name, one in tensors.items():
            if ".lora_A." in name:
                tensors[name] = torch.cat([one, first[name]], 0)
            elif ".lora_B." in name:
                tensors[name] = torch.cat([one, -first[name]], 1)
        more = math.sqrt(2) if config["use_rslora"] else 2
        config |= {"r": 2 * config["r"], "lora_alpha": more * config["lora_alpha"]}
        config["rank_pattern"] = {name: 2 * rank for name, rank in config["rank_pattern"].items()}
        config["alpha_pattern"] = {name: more * alpha for name, alpha in config["alpha_pattern"].items()}
    return Adapter(config, tensors)


@torch.no_grad()
def merge(adapted: Any) -> Any:
    """The base model with W + (alpha / r) B A, summed in float32 and cast to W's dtype once."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            weight = (
                module.get_param() if isinstance(module, ParamWrapper) else module.get_base_layer().weight
            )
            dtype = weight.dtype
            weight.data = weight.data.float()
            module.merge()
            weight.data = weight.data.to(dtype)
    model = adapted.base_model.unload()
    return model.requires_grad_(False).eval()


@torch.no_grad()
def zeroed(model: Any, columns: Columns) -> Any:
    """The model with what is masked exactly zero, also where a split of the weight left a rounding."""
    for name, masked in columns.items():
        if masked is not None:
            index = torch.tensor(masked[1], device=model.device)
            model.get_parameter(name).index_fill_(masked[0], index, 0.0)
    return model
