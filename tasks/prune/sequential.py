"""Layers cut and repaired in order, each on what the layers before it give once they are cut and repaired.

Two streams of hidden states go through the layers side by side: that of the uncut model, whose readers'
outputs are the targets, and that of the pruned one, whose readers' inputs the repair has to work with.
Within a layer attention is repaired first, so that the FFN is repaired on what it will see. A layer
costs one forward for the targets, one for each reader that is repaired, and one to go on; the targets
are held for one layer, as large as the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Layer
from resprout.tasks.models.spool import Spool
from resprout.tasks.models.walk import Step, walk, watch
from resprout.tasks.prune.contracts import SequentialRepair
from resprout.tasks.prune.cutting import Cutter
from resprout.tasks.prune.plan import LayerPlan
from resprout.tasks.prune.statistics import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def repaired_in_order(
    model: PreTrainedModel, cutter: Cutter, repair: SequentialRepair, input_ids: Tensor, ridge: float
) -> Iterator[Any]:
    """For each layer what stays of it, None where it goes. `input_ids` int64 [samples, tokens].

    The model itself is not changed.
    """
    stream = Spool()
    for step in walk(model, input_ids):
        if step.index == 0:
            stream = Spool(step.hidden.limit_bytes)
            for hidden in step.hidden:
                stream.append(cutter.stream(hidden))
        targets = _outputs(step, cutter.repairable(step.index))
        if step.index not in cutter.place:
            yield None
            continue
        module = _repaired_layer(step, cutter, repair, stream, targets, ridge)
        for batch in range(len(stream)):
            stream[batch] = _forward(module, step, stream[batch], batch)
        yield module


def _outputs(step: Step, kinds: list[Unit]) -> dict[Unit, Spool]:
    """What each kind's reader gives in the uncut model, batch by batch [tokens, outputs]; runs the step."""
    seen = {kind: Spool(step.hidden.limit_bytes) for kind in kinds}
    with ExitStack() as watching:
        for kind in kinds:

            def hook(module: Any, inputs: Any, output: Tensor, kind: Unit = kind) -> None:
                seen[kind].append(output.flatten(0, -2))

            watching.callback(step.layer.reader(kind).register_forward_hook(hook).remove)
        for _ in step.run():
            pass
    return seen


def _repaired_layer(
    step: Step,
    cutter: Cutter,
    repair: SequentialRepair,
    stream: Spool,
    targets: dict[Unit, Spool],
    ridge: float,
) -> Any:
    layer, wanted = step.layer, cutter.kept(step.index)
    readers: dict[str, Tensor] = {}
    for kind in targets:
        module = cutter.layer(layer, step.index, _without_cut_of(kind, wanted, layer), readers)
        units = layer.units(kind)
        kept = units.part.features(wanted.kept()[kind])
        statistic = repair.targets(len(kept))
        columns = kept.to(units.weight.device)
        reader = module.get_submodule(units.part.reader)
        for batch, target in enumerate(targets[kind]):

            def see(
                inputs: Tensor,
                target: Tensor = target,
                columns: Tensor = columns,
                statistic: Targets = statistic,
            ) -> None:
                statistic.update(inputs[:, columns], target)

            with watch(reader, see):
                _forward(module, step, stream[batch], batch)
        repaired = repair.solve(units, kept, statistic, ridge)
        readers[f"{units.part.reader}.weight"] = (
            repaired.weight.T if units.part.transposed else repaired.weight
        )
    return cutter.layer(layer, step.index, wanted, readers)


def _without_cut_of(kind: Unit, wanted: LayerPlan, layer: Layer) -> LayerPlan:
    """The plan up to the reader of `kind`: what is repaired before is cut, its own and later units stay."""
    whole: dict[str, Any] = {"ffn": tuple(range(layer.widths.ffn)), "experts": None, "expert_ffn": None}
    if kind != "ffn":
        whole |= {"kv_groups": tuple(range(layer.widths.kv_heads)), "heads": None}
    return wanted.model_copy(update=whole)


def _forward(module: Any, step: Step, hidden: Tensor, batch: int) -> Tensor:
    more, arguments = step.arguments[batch]
    with torch.no_grad():
        output = module(hidden, *more, **arguments)
    return output if isinstance(output, Tensor) else output[0]
