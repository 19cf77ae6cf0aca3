"""A model made sparse layer by layer, each on what the sparse layers before it give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.size import count
from resprout.tasks.models.walk import walk, watch
from resprout.tasks.prune.semi_structured.masks import Pattern
from resprout.tasks.sparsify.registry import Method
from resprout.tasks.sparsify.weights import sparse_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_sparse(
    model: PreTrainedModel, method: Method, pattern: Pattern, input_ids: Tensor, progress: Progress = silent
) -> dict[str, float]:
    """Set weights of all matrices in layers to zero, in place; returns how many are zero.

    `zeros_share` is of all unique parameters, `pattern_zeros_share` of the matrices that keep to the pattern.
    `input_ids` int64 [samples, tokens] run through the model where the method looks at inputs.
    """
    zeros = matrices = 0
    layers = _alone(model) if method.needs == "weights" else _watched(model, method, input_ids)
    for done, (layer, inputs) in enumerate(layers, 1):
        for name in inputs:
            parameter = layer.module.get_parameter(name)
            transposed = layer.family.transposed and parameter.dim() == 2
            # Experts lie one after another, each with rows of its own.
            rows = parameter.T if transposed else parameter.flatten(0, -2)
            found = method.sparse(rows, inputs[name], pattern)
            parameter.data = (found.T if transposed else found.view(parameter.shape)).contiguous()
            zeros += int((found == 0).sum())
            matrices += found.numel()
        progress(done, len(anatomy(model).layers), "layers made sparse")
    return {"zeros_share": zeros / count(model).params, "pattern_zeros_share": zeros / matrices}


def _alone(model: PreTrainedModel) -> Iterator[tuple[Layer, Mapping[str, Any]]]:
    for layer in anatomy(model).layers:
        yield layer, {name: None for name, _ in sparse_weights(layer.shape, layer.index)}


def _watched(
    model: PreTrainedModel, method: Method, input_ids: Tensor
) -> Iterator[tuple[Layer, Mapping[str, Any]]]:
    """Each layer with what its matrices are given; it runs again, as it is by then, for the next."""
    for step in walk(model, input_ids):
        seen = {
            name: method.statistic(inputs) for name, inputs in sparse_weights(step.layer.shape, step.index)
        }
        with ExitStack() as watching:
            for name, statistic in seen.items():
                module = step.layer.module.get_submodule(name.rpartition(".")[0])
                watching.enter_context(watch(module, statistic.update))
            step.rehearse()
        yield step.layer, seen
