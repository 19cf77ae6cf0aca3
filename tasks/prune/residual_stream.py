"""The residual stream over calibration tokens: at norms, its principal directions, its angle at a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.anatomy import Layer
from resprout.tasks.models.families.family import is_norm
from resprout.tasks.models.forward import LayerStep, run_layerwise
from resprout.tasks.prune.interfaces import Bench, Model
from resprout.tasks.prune.statistics import Gram


def hidden_norms(layer: Layer) -> list[nn.Module]:
    """The norms of a layer over the hidden channels."""
    axes = layer.shape.layer_tensors(layer.widths)
    return [layer.module.get_submodule(name.rpartition(".")[0]) for name in axes if is_norm(name, axes)]


def at_norms(
    model: Model, input_ids: Tensor, see: Callable[[int, int, Tensor, Tensor], None]
) -> Iterator[tuple[int, int]]:
    """Call `see` with indices of a layer and of a norm in it, and its inputs and outputs.

    Yields (layers done, layers).

    `input_ids` int64 [samples, tokens]; inputs and outputs are [rows, tokens, hidden].
    """
    for step in run_layerwise(model, input_ids):

        def watched(norm: int, index: int = step.index) -> Any:
            return lambda module, inputs, output: see(index, norm, inputs[0], output)

        with ExitStack() as watching:
            for number, norm in enumerate(hidden_norms(step.layer)):
                watching.callback(norm.register_forward_hook(watched(number)).remove)
            step.run_all()
        yield step.index + 1, step.total


def principal_directions(
    model: Model, input_ids: Tensor, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Variances [hidden], largest first, and orthonormal directions [hidden, hidden], one a column: float32.

    Of the second moments of the residual stream at all norms of all layers, each token divided by its
    root mean square; solved in float64. A direction's largest entry is positive, so that signs are
    reproducible.
    """
    grams: list[Gram] = []

    def see(index: int, norm: int, inputs: Tensor, outputs: Tensor) -> None:
        if not grams:
            grams.append(Gram(inputs.shape[-1]))
        grams[0].update(normed(inputs))

    for done, total in at_norms(model, input_ids, see):
        progress(done, total, "layers seen")
    return principal(grams[0])


def normed(stream: Tensor) -> Tensor:
    """Each token of [..., hidden] over its root mean square: float32 [tokens, hidden]."""
    values = stream.flatten(0, -2).float()
    return values / values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)


def principal(gram: Gram) -> tuple[Tensor, Tensor]:
    """As `principal_directions`, of these second moments."""
    values, vectors = torch.linalg.eigh(gram.matrix.double())
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values.clamp_min(0.0).float(), (vectors * largest.sign()).float()


def cosines(before: Tensor, after: Tensor) -> Tensor:
    """The cosine of two states of each token, by rounding never outside -1 to 1: float32 [tokens]."""
    return cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1, 1).flatten()


def step_cosines(step: LayerStep) -> Tensor:
    """The cosine of what comes into a layer and what leaves it: float32 [tokens]; runs the layer."""
    before = list(step.hidden)
    return torch.cat([cosines(x, y) for x, y in zip(before, step.run(), strict=True)])


def layer_cosines(bench: Bench) -> Iterator[Tensor]:
    """The cosines of each of the request's layers in turn, in one pass over the calibration tokens."""
    for step in run_layerwise(bench.model, bench.input_ids):
        found = step_cosines(step)
        if bench.layers is None or step.index in bench.layers:
            yield found
        bench.progress(step.index + 1, step.total, "layers measured")
