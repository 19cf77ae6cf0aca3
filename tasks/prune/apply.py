"""A plan carried out: tensors cut, the removed units made good for, the config brought in line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import Kind, Layer, Part, anatomy, expand
from resprout.tasks.models.families import FAMILIES, LAYOUT_KEY
from resprout.tasks.models.layout import Layout
from resprout.tasks.models.size import shape_of
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.contracts import Repair, Repaired
from resprout.tasks.prune.plan import LayerPlan, Plan
from resprout.tasks.prune.registry import REPAIRS
from resprout.tasks.prune.statistics import Statistic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def apply(
    model: PreTrainedModel,
    plan: Plan,
    input_ids: Tensor | None = None,
    ridge: float = 0.01,
    progress: Progress = silent,
) -> None:
    """Cut `model` in place as `plan` says, with the plan's repair, and update its config.

    `input_ids` int64 [samples, tokens] are needed by repairs that look at data; the model is then walked once
    and each layer is cut as soon as its statistics are there. A plan for another model raises BadInput.
    """
    plan.check_fits(shape_of(model.config.to_dict()))
    parts = anatomy(model)
    repair = REPAIRS.get(plan.repair)()
    kinds: tuple[Kind, ...] = plan.units
    if repair.statistic(1) is None:
        for index, (layer, kept) in enumerate(zip(parts.layers, plan.layers, strict=True)):
            _cut_layer(layer, kept, kinds, repair, {}, ridge)
            progress(index + 1, len(parts.layers), "layers cut")
    else:
        if input_ids is None:
            raise TypeError(f"repair '{plan.repair}' needs calibration tokens")
        for step in walk(model, input_ids):
            statistics: dict[Kind, Statistic] = {}
            with ExitStack() as watching:
                for kind in kinds:
                    reader = step.layer.part(kind).reader.linear
                    statistic = repair.statistic(reader.in_features)
                    if statistic is not None:
                        statistics[kind] = statistic
                        watching.enter_context(watch(reader, statistic.update))
                for _ in step.run():
                    pass
            _cut_layer(step.layer, plan.layers[step.index], kinds, repair, statistics, ridge)
            progress(step.index + 1, step.total, "layers cut")
    _update_config(model.config, plan)


def _cut_layer(
    layer: Layer,
    kept: LayerPlan,
    kinds: tuple[Kind, ...],
    repair: Repair,
    statistics: dict[Kind, Statistic],
    ridge: float,
) -> None:
    for kind in kinds:
        part = layer.part(kind)
        units = kept.ffn if kind == "ffn" else kept.kv_groups
        repaired = repair.repair(part, part.features(units), statistics.get(kind), ridge)
        _cut(part, units, repaired)
    layer.note_widths()


def _cut(part: Part, units: tuple[int, ...], repaired: Repaired) -> None:
    added = repaired.bias is not None
    for slot, rows in part.writers:
        linear, index = slot.linear, expand(units, rows)
        weight = linear.weight[index]
        present: Tensor | None = linear.bias
        if present is not None:
            bias: Tensor | None = present[index]
        else:
            # Stock configs have one switch for all biases of a block: where one is added, the others are
            # zero.
            bias = weight.new_zeros(len(index)) if added else None
        slot.put(_linear(weight, bias))
    reader = part.reader.linear
    part.reader.put(_linear(repaired.weight, repaired.bias if added else reader.bias))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return linear.eval()


def _update_config(config: Any, plan: Plan) -> None:
    dense = shape_of(config.to_dict())
    pruned = plan.shape(dense)
    family = FAMILIES[dense.model_type]
    if plan.repair == "bias":
        if "ffn" in plan.units and family.ffn_bias_key:
            setattr(config, family.ffn_bias_key, True)
        if "kv_groups" in plan.units and family.attention_bias_key:
            setattr(config, family.attention_bias_key, True)
    if pruned.stock:
        config.intermediate_size = pruned.ffn[0]
        config.num_key_value_heads = pruned.kv_heads[0]
        config.num_attention_heads = pruned.heads[0]
        # Stock configs derive head_dim from hidden size and heads where it is not named.
        config.head_dim = dense.head_dim
        if hasattr(config, LAYOUT_KEY):
            delattr(config, LAYOUT_KEY)
    else:
        setattr(config, LAYOUT_KEY, Layout(pruned.ffn, pruned.kv_heads).to_config())
