"""All matrices of a model rounded in place, layer by layer: to nearest, or by GPTQ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.forward import LayerStep, run_layerwise, watch
from resprout.tasks.models.shape import Model
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.quantize.gptq import solve
from resprout.tasks.quantize.grid import Grid


def round_layers(
    model: Model, grid: Grid, input_ids: Tensor | None, progress: Progress = silent
) -> dict[str, Tensor]:
    """Put the weights of all matrices in layers on the grid; returns the scales by whole module names.

    With `input_ids` int64 [samples, tokens] by GPTQ: each layer runs twice over them, as it was to see its
    inputs and rounded to give the next layer's.
    """
    found: dict[str, Tensor] = {}
    parts = anatomy(model)
    layers = _alone(parts.layers) if input_ids is None else _watched(model, input_ids)
    for done, (layer, grams) in enumerate(layers, 1):
        prefix = f"{layer.family.layer_prefix}{layer.index}."
        for names, gram in _alike(grams):
            weights = [layer.module.get_parameter(name) for name in names]
            # One solution serves all matrices that read the same inputs.
            joined = torch.cat([weight.data for weight in weights])
            scales = grid.scales(joined)
            rounded = grid.round(joined, scales) if gram is None else solve(joined, gram, grid, scales)
            rows = [len(weight) for weight in weights]
            for name, weight, values, own in zip(
                names, weights, rounded.split(rows), scales.split(rows), strict=True
            ):
                weight.data = values.to(weight.dtype, copy=True)
                found[prefix + name.removesuffix(".weight")] = own.clone()
        layer.keep()
        progress(done, len(parts.layers), "layers quantised")
    return found


def _alike(grams: Mapping[str, Gram | None]) -> Iterable[tuple[list[str], Gram | None]]:
    """Names of matrices with what they are given, those of one Gram together."""
    together: dict[int, list[str]] = defaultdict(list)
    for name, gram in grams.items():
        together[id(gram if gram is not None else name)].append(name)
    return [(names, grams[names[0]]) for names in together.values()]


def _alone(layers: Iterable[Layer]) -> Iterator[tuple[Layer, Mapping[str, Gram | None]]]:
    for layer in layers:
        with layer.loaded():
            yield layer, {name: None for name, _ in layer.shape.matrices(layer.index)}


def _watched(model: Model, input_ids: Tensor) -> Iterator[tuple[Layer, Mapping[str, Gram | None]]]:
    """Each layer with the Grams of its matrices' inputs; it runs again, as it is by then, for the next."""
    for step in run_layerwise(model, input_ids):
        yield step.layer, _grams(step)


def _grams(step: LayerStep) -> dict[str, Gram | None]:
    """The Gram of what each matrix is given; matrices that are given the same tensor share one."""
    found: dict[str, Gram | None] = {}
    last: list[tuple[Tensor, Gram]] = []

    def see(name: str, inputs: Tensor) -> None:
        if last and last[0][0].data_ptr() == inputs.data_ptr() and last[0][0].shape == inputs.shape:
            found[name] = last[0][1]
            return
        gram = found.get(name) or Gram(inputs.shape[1])
        gram.update(inputs)
        # Kept, so that no other tensor takes its place in memory.
        last[:] = [(inputs, gram)]
        found[name] = gram

    with ExitStack() as watching:
        for name, _ in step.layer.shape.matrices(step.index):
            module = step.layer.module.get_submodule(name.rpartition(".")[0])
            watching.enter_context(watch(module, partial(see, name)))
        step.dry_run()
    return found
