"""Block influence: how far a layer turns the residual stream (ShortGPT, Men et al., arXiv 2403.03853, eq. 1).

BI_i = 1 - E[cos(x_i, x_{i+1})] over calibration tokens, x_i and x_{i+1} the hidden states in front of layer i
and behind it. A sublayer is scored by the same rule on what it reads of the stream and on that once its
output is added. Where both sublayers read the layer's input (GPT-NeoX), each is scored by itself: x + a
and x + f beside x.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from resprout.tasks.core.job import Progress
from resprout.tasks.models.forward import LayerStep, run_layerwise, watch
from resprout.tasks.models.modeling_resprout import first_output
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs
from resprout.tasks.prune.residual_stream import cosines, step_cosines


class BlockInfluence:
    """One minus the cosine between what comes into a layer or sublayer and what leaves it."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("layers", "sublayers")

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """Float32 [1, 1] for each layer; [2, 1], attention and FFN, for its sublayers. One forward pass."""
        (kind,) = kinds
        scores: LayerScores = []
        for step in run_layerwise(model, input_ids):
            measured = _sublayers(step) if kind == "sublayers" else [_mean([1 - step_cosines(step)])]
            scores.append({kind: torch.stack(measured).float().reshape(-1, 1)})
            progress(step.index + 1, step.total, "layers scored")
        return scores


def _sublayers(step: LayerStep) -> list[Tensor]:
    """Block influence of attention and FFN."""
    layer, before = step.layer, list(step.hidden)
    parallel = layer.family.parallel(layer.shape.config)
    attention = layer.module.get_submodule(layer.family.attention_zeros[0])
    reads: list[Tensor] = []
    adds: list[Tensor] = []

    def see(stream: Tensor) -> None:
        if not reads:
            reads.append(stream)

    def keep(module: Any, inputs: Any, output: Any) -> None:
        adds.append(first_output(output))

    with ExitStack() as watching:
        if parallel:
            watching.callback(attention.register_forward_hook(keep).remove)
        else:
            # The first of the FFN's modules to run reads the stream: the norm in front, if there is one.
            for name in {name.split(".")[0] for name in layer.family.ffn(layer.shape.config)}:
                watching.enter_context(watch(layer.module.get_submodule(name), see))
        distances: tuple[list[Tensor], list[Tensor]] = ([], [])
        for x, y in zip(before, step.run(), strict=True):
            # Between the sublayers, or each beside the same input.
            middle = x + adds.pop() if parallel else reads.pop().view_as(x)
            distances[0].append(1 - cosines(x, middle))
            distances[1].append(1 - (cosines(x, y - (middle - x)) if parallel else cosines(middle, y)))
    return [_mean(one) for one in distances]


def _mean(distances: list[Tensor]) -> Tensor:
    return torch.cat(distances).double().mean()
