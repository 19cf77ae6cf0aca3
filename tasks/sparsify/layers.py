"""A model made sparse layer by layer, each on what the sparse layers before it give; masks of a pattern.

A. Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv 2104.08378: in each group of m
weights of a row the n with the best scores stay, which is the best of all masks of the group for scores
that add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.forward import run_layerwise, watch
from resprout.tasks.models.shape import Model, count
from resprout.tasks.sparsify.pattern import Method, Pattern


def best_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """True where a weight stays: bool [outputs, inputs], of scores of that shape; ties to the lower index."""
    pattern.check(scores)
    groups = scores.reshape(len(scores), -1, pattern.group)
    best = groups.sort(dim=2, descending=True, stable=True).indices[:, :, : pattern.keep]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True)
    return mask.view(scores.shape)


def keeps_to(weight: Tensor, pattern: Pattern) -> bool:
    """Whether every group of `weight` [outputs, inputs] has at most `keep` values other than 0."""
    pattern.check(weight)
    nonzero = (weight != 0).reshape(len(weight), -1, pattern.group).sum(dim=2)
    return bool((nonzero <= pattern.keep).all())


def make_sparse(
    model: Model, method: Method, pattern: Pattern, input_ids: Tensor, progress: Progress = silent
) -> dict[str, float]:
    """Set weights of all matrices in layers to zero, in place; returns how many are zero.

    `zeros_share` is of all unique parameters, `pattern_zeros_share` of the matrices that keep to the pattern.
    `input_ids` int64 [samples, tokens] run through the model where the method uses inputs.
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
        layer.keep()
        progress(done, len(anatomy(model).layers), "layers made sparse")
    return {"zeros_share": zeros / count(model).params, "pattern_zeros_share": zeros / matrices}


def _alone(model: Model) -> Iterator[tuple[Layer, Mapping[str, Any]]]:
    for layer in anatomy(model).layers:
        with layer.loaded():
            yield layer, {name: None for name, _ in layer.shape.matrices(layer.index)}


def _watched(model: Model, method: Method, input_ids: Tensor) -> Iterator[tuple[Layer, Mapping[str, Any]]]:
    """Each layer with what its matrices are given; it runs again, as it is by then, for the next."""
    for step in run_layerwise(model, input_ids):
        seen = {name: method.statistic(inputs) for name, inputs in step.layer.shape.matrices(step.index)}
        with ExitStack() as watching:
            for name, statistic in seen.items():
                module = step.layer.module.get_submodule(name.rpartition(".")[0])
                watching.enter_context(watch(module, statistic.update))
            step.dry_run()
        yield step.layer, seen
