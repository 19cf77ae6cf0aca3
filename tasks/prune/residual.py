"""The residual stream at each norm over the hidden channels, layer by layer over calibration tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resprout.tasks.models.anatomy import Layer
from resprout.tasks.models.walk import walk
from resprout.tasks.prune.cutting import is_norm

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
