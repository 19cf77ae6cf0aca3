"""The residual stream at each norm over the hidden channels, layer by layer over calibration tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.tasks.job import Progress, silent
from resprout.tasks.models.anatomy import Layer
from resprout.tasks.models.walk import walk
from resprout.tasks.prune.cutting import is_norm
from resprout.tasks.prune.statistics import Gram

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_norms(layer: Layer) -> list[nn.Module]:
    """The norms of a layer over the hidden channels."""
    axes = layer.shape.layer_tensors(layer.widths)
    return [layer.module.get_submodule(name.rpartition(".")[0]) for name in axes if is_norm(name, axes)]


def at_norms(
    model: PreTrainedModel, input_ids: Tensor, see: Callable[[int, Tensor, Tensor], None]
) -> Iterator[tuple[int, int]]:
    """Call `see` with a layer's index and each norm's inputs and outputs; yields (layers done, layers).

    `input_ids` int64 [samples, tokens]; inputs and outputs are [rows, tokens, hidden].
    """
    for step in walk(model, input_ids):

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor, index: int = step.index) -> None:
            see(index, inputs[0], output)

        with ExitStack() as watching:
            for norm in hidden_norms(step.layer):
                watching.callback(norm.register_forward_hook(hook).remove)
            for _ in step.run():
                pass
        yield step.index + 1, step.total


def principal_directions(
    model: PreTrainedModel, input_ids: Tensor, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Variances [hidden], largest first, and orthonormal directions [hidden, hidden], one a column: float32.

    Of the second moments of the residual stream at all norms of all layers, each token divided by its
    root mean square; solved in float64. A direction's largest entry is positive, so that signs are
    reproducible.
    """
    grams: list[Gram] = []

    def see(index: int, inputs: Tensor, outputs: Tensor) -> None:
        values = inputs.flatten(0, -2)
        if not grams:
            grams.append(Gram(values.shape[1]))
        size = values.float().square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
        grams[0].update(values.float() / size)

    for done, total in at_norms(model, input_ids, see):
        progress(done, total, "layers seen")
    matrix = grams[0].matrix.double()
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values.clamp_min(0.0).float(), (vectors * largest.sign()).float()
