"""SliceGPT with a rotation for each block (Ashkboos et al., ICLR 2024, arXiv 2401.15024, sec. 3.3).

Every sublayer reads the residual stream in the basis Q_l of its own principal directions, strongest first,
and the stream is brought from one to the next by Q_l^T Q_{l+1} (tasks/models/layouts.py). Norm weights are
fused into what reads them, as `rotation` does; all bases are cut to the same hidden size.

As in the authors' code (microsoft/TransformerCompression, rotate_and_slice_sequential) a block's directions
are those of the stream once all blocks before are cut, and a block is one sublayer. Different here: moments
are those of tokens over their root mean square, as in the paper, where the code takes tokens as they are; the
last basis, which the head reads, is cut as the others are (`do_slice_head`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.forward import LayerStack
from resprout.tasks.models.layouts import build_layer, sublayer_places, write_shape
from resprout.tasks.models.modeling_resprout import Sublayers
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.interfaces import Kinds, Model
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.repairs.none import NoRepair
from resprout.tasks.prune.repairs.rotation import rotate, rotate_ends
from resprout.tasks.prune.residual_stream import normed, principal
from resprout.tasks.prune.statistics import Gram


@dataclass(frozen=True)
class BlockRotation(NoRepair):
    """Residual stream turned to the principal directions of each block, of which the strongest are kept."""

    units: ClassVar[Kinds] = ("hidden",)
    basis: ClassVar[str] = "directions"
    unties_head: ClassVar[bool] = True
    rotates_blocks: ClassVar[bool] = True
    whole_model: ClassVar[bool] = True

    inputs: Literal["dense", "pruned"] = "pruned"
    """Whose stream gives a block's directions: the uncut model's, or that once the blocks before are cut."""

    @torch.no_grad()
    def prepare(self, model: Model, plan: Plan, input_ids: Tensor, progress: Progress) -> None:
        """Rotate `model` in place, its layers replaced by rotated ones: it computes the same."""
        parts, stack = anatomy(model), LayerStack(model, input_ids)
        shape = shape_of(model.config.to_dict())
        sublayers = Sublayers(sublayer_places(shape.family, shape.config))
        kept = len(plan.hidden or ()) if self.inputs == "pruned" else shape.hidden
        stream, basis = self._in_basis(stack.start, kept)
        first = basis
        built: list[nn.Module] = []
        for layer, calls in zip(parts.layers, stack.calls, strict=True):
            bases = [basis]
            attended = [
                one + sublayers.attention(layer.module, one, arguments)
                for one, (_, arguments) in zip(stream, calls, strict=True)
            ]
            stream, basis = self._in_basis(attended, kept)
            bases.append(basis)
            stream, basis = self._in_basis([one + sublayers.ffn(layer.module, one) for one in stream], kept)
            built.append(_rotated(layer, model, shape, [*bases, basis]))
            progress(layer.index + 1, len(parts.layers), "layers turned")
        rotate_ends(model, shape, first, basis)
        setattr(parts.decoder, shape.family.layers, nn.ModuleList(built))
        write_shape(model.config, replace(shape_of(model.config.to_dict()), rotated=True))

    def _in_basis(self, stream: Sequence[Tensor], kept: int) -> tuple[list[Tensor], Tensor]:
        """The stream without its weakest directions, and its directions [hidden, hidden], one a column."""
        gram = Gram(stream[0].shape[-1])
        for one in stream:
            gram.update(normed(one))
        directions = principal(gram)[1]
        strong = directions[:, :kept]
        if kept == len(directions):
            return list(stream), directions
        return [(one.float() @ strong @ strong.T).to(one.dtype) for one in stream], directions


def _rotated(layer: Layer, model: Model, shape: Shape, bases: Sequence[Tensor]) -> nn.Module:
    """The layer, rotated in place: it reads in the first basis, then the second, and writes in the third."""
    family, module = shape.family, layer.module
    dtype = next(module.parameters()).dtype
    rotate(module, family.attention(shape.config), bases[0], bases[1], family.norm_offset)
    rotate(module, family.ffn(shape.config), bases[1], bases[2], family.norm_offset)
    rotations = {
        "attention_turn.weight": (bases[1].T @ bases[0]).to(dtype),
        "ffn_turn.weight": (bases[2].T @ bases[1]).to(dtype),
    }
    with torch.device("meta"):
        built: nn.Module = build_layer(type(module), model.config, replace(shape, rotated=True), layer.index)
    built.load_state_dict({**layer.tensors, **rotations}, assign=True)
    return built.requires_grad_(False)
