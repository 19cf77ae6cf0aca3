"""SliceGPT with one rotation for all blocks (Ashkboos et al., ICLR 2024, arXiv 2401.15024).

RMSNorm without weights commutes with every orthogonal Q, so a decoder whose norm weights are fused into
what follows computes the same with its residual stream rotated: embeddings and writers W become Q^T W,
readers and head W Q (section 3.1 and 3.2). With Q the principal directions of the stream, strongest
first, the last directions carry least, and cutting them off the hidden size loses least.

The paper gives every block its own Q and puts Q_l^T Q_{l+1} on the residual between them (repair
`block_rotation`), which no stock class has. Here one Q serves the whole model, so that the result is a
stock model with a smaller hidden size. Its directions are those of the stream as the norms see it, each
token over its root mean square as in the paper (the authors' code takes tokens as they are), over all norms
of all layers: a sum of raw covariances would be that of the last layers and of a few huge tokens. The head
is untied from the embeddings, as the last norm's weights are fused into it alone. After the cut the norms'
weights are sqrt(all / kept), which is how the paper's norms, which divide by the uncut width, look in a
stock class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families.family import Tensors, is_norm
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.interfaces import Kinds, Model
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.repairs.none import NoRepair
from resprout.tasks.prune.residual_stream import principal_directions


class Rotation(NoRepair):
    """Residual stream turned to its principal directions, of which the hidden size keeps the strongest."""

    units: ClassVar[Kinds] = ("hidden",)
    basis: ClassVar[str] = "directions"
    unties_head: ClassVar[bool] = True
    whole_model: ClassVar[bool] = True

    def prepare(self, model: Model, plan: Plan, input_ids: Tensor, progress: Progress) -> None:
        """Rotate `model` in place, its norm weights fused: it computes the same, with a head of its own."""
        directions = principal_directions(model, input_ids, progress)[1]
        parts = anatomy(model)
        shape = shape_of(model.config.to_dict())
        family = shape.family
        for layer in parts.layers:
            for sublayer in (family.attention(shape.config), family.ffn(shape.config)):
                rotate(layer.module, sublayer, directions, directions, family.norm_offset)
        rotate_ends(model, shape, directions, directions)


def rotate_ends(model: Model, shape: Shape, first: Tensor, last: Tensor) -> None:
    """Rotate embeddings to the directions `first`, last norm and head to `last`; a tied head is untied."""
    if shape.tied:
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    ends = shape.family.ends({**shape.config, "tie_word_embeddings": False})
    # Of the two that are [vocab, hidden] only the head reads the last norm.
    embeddings = next(
        name for name in ends if model.get_parameter(name) is model.get_input_embeddings().weight
    )
    rotate(model, {embeddings: ends[embeddings]}, first, first, shape.family.norm_offset)
    rest = {name: axes for name, axes in ends.items() if name != embeddings}
    rotate(model, rest, last, last, shape.family.norm_offset)


def rotate(module: nn.Module, axes: Tensors, reads: Tensor, writes: Tensor, offset: float) -> None:
    """Fuse the one norm among these tensors of `module` into those that read it; rotate both kinds.

    A reader has the hidden channels in its last axis (of at least two) and is rotated to the directions
    `reads`, a writer has them elsewhere and is rotated to `writes`. Tensors that are not there are left out.
    """
    held = {name: one for name, one in module.named_parameters() if name in axes}
    norms = [name for name in axes if is_norm(name, axes) and name in held]
    scale = torch.ones(len(reads), dtype=torch.float32, device=reads.device)
    for name in norms:
        scale = scale * (held[name].float() + offset)
    for name, dims in axes.items():
        if name in norms or name not in held or "hidden" not in dims:
            continue
        tensor = held[name]
        dim = dims.index("hidden")
        values = tensor.detach().float().movedim(dim, -1)
        reader = len(dims) > 1 and dim == len(dims) - 1
        rotated = (values * scale) @ reads if reader else values @ writes
        tensor.data = rotated.movedim(-1, dim).to(tensor.dtype).contiguous()
    for name in norms:
        held[name].data = torch.full_like(held[name], 1.0 - offset)
