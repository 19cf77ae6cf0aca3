"""How far a model's hidden states are from the dense model's, layer by layer, in passes that run anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.modeling_resprout import first_output


@dataclass(frozen=True)
class LayerPairs:
    """The layers of a dense model and those of another that come in the same places."""

    dense: Sequence[nn.Module]
    other: Sequence[nn.Module]

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Yield a list that in the end holds the distance at each layer, after a pass of each model.

        The dense model runs first. A distance is 1 - cosine of the hidden states behind the layer, averaged
        over the tokens of the batch's first row: 0 where they point the same way.
        """
        theirs: list[Tensor] = []
        distances: list[float] = []

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            theirs.append(first_output(output)[:1])

        def compare(module: nn.Module, given: Any, output: Any) -> None:
            # Taken out at once: states of all layers of a large model are large.
            before, here = theirs.pop(0).float(), first_output(output)[:1].float()
            distances.append((1 - cosine_similarity(here, before, dim=-1)).double().mean().item())

        with ExitStack() as hooks:
            for layers, hook in ((self.dense, keep), (self.other, compare)):
                for layer in layers:
                    hooks.callback(layer.register_forward_hook(hook).remove)
            yield distances


def layer_pairs(model: Any, dense: Any) -> LayerPairs | None:
    """The layers to compare; None where hidden states are not in one basis or not seen, or layers gone."""
    if not hasattr(model, "get_decoder"):
        return None
    other, uncut = anatomy(model).layers, anatomy(dense).layers
    shapes = {(one[0].shape.hidden, len(one), one[0].shape.rotated) for one in (other, uncut) if one}
    if len(shapes) != 1 or any(rotated for _, _, rotated in shapes):
        return None
    return LayerPairs([one.module for one in uncut], [one.module for one in other])
