"""Removed layers fused into their neighbours (FuseGPT, Pei et al., arXiv 2411.14507).

One removed layer after another is taken out of a group of neighbours. A weight W of each of these is computed
as

    W + B A + (C D) * R,    b + c * r of the bias beside it,

R (and r) the removed layer's tensor of the same name, frozen, and * the product element by element. B, C and
c start at zero, so that a fresh fusion changes nothing; A and D start as LoRA's do. They are trained so that
the group without the layer gives what the group with it gave on calibration tokens. Then they are merged: the
result is a stock model.

As the authors' code (JarvisPei/FuseGPT) in group, start, ranks, rates, epochs and schedule; a step there is
16,384 tokens. Different here: the plan says beforehand which layers go, and they are taken front to back;
biases and norms are not trained at `update_rate`; the loss is the squared distance to the group's output over
its squared norm, token by token, where the code takes the divergence of softmaxes over a batch's samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.job import Progress
from resprout.tasks.models.forward import BATCH_TOKENS, LayerStack
from resprout.tasks.prune.interfaces import Kinds, Model, require
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.repairs.none import NoRepair
from resprout.tasks.prune.scoring import check_memory, differentiable


@dataclass(frozen=True)
class Fusion(NoRepair):
    """Removed layers grafted onto their neighbours by trained low-rank coefficients."""

    units: ClassVar[Kinds] = ("layers",)
    whole_model: ClassVar[bool] = True
    alike_layers: ClassVar[bool] = True

    group: int = 7
    """Neighbours that a removed layer is fused into: as many in front as behind, or one more."""
    rank: int = 128
    """Rank of the coefficients C D, and of the update B A."""
    batch_tokens: int = 2048
    """Calibration tokens of a step, in whole samples; fewer give more steps at the same cost."""
    epochs: int = 20
    """Passes over the calibration tokens for each removed layer."""
    learning_rate: float = 1e-3
    """Rate of Adam for the coefficients; it falls to zero along a cosine."""
    update_rate: float = 9.65e-6
    """The same for the update; 0 leaves it out."""
    seed: int = 17
    """Of the first values of A and D."""

    def __post_init__(self) -> None:
        require("fusion", 1, group=self.group, rank=self.rank, epochs=self.epochs)
        require("fusion", 1, batch_tokens=self.batch_tokens)
        require("fusion", 0, learning_rate=self.learning_rate, update_rate=self.update_rate)

    def prepare(self, model: Model, plan: Plan, input_ids: Tensor, progress: Progress) -> None:
        """Change the layers that stay in place; those that go are left for the cut.

        Costs a forward and backward pass through the group in every epoch for each removed layer. A float16
        model, or one that does not fit with its activations, raises BadInput; a loss that is not finite
        StageFailed.
        """
        if model.dtype == torch.float16:
            raise BadInput("repair 'fusion' cannot train in float16; set model.dtype: bfloat16 or float32")
        stack = LayerStack(model, input_ids, self.batch_tokens)
        present = list(range(len(stack.layers)))
        kept = {plan.source(layer) for layer in range(len(plan.layers))}
        removed_layers = [layer for layer in present if layer not in kept]
        generator = torch.Generator().manual_seed(self.seed)
        for done, layer in enumerate(removed_layers):
            members = neighbours(present, layer, self.group)
            removed = matrices(stack.layers[layer])
            self._check_memory(model, input_ids, removed.values(), len(members))
            with torch.no_grad():
                before = present[: present.index(members[0])]
                inputs = [stack.run(before, batch, one) for batch, one in enumerate(stack.start)]
                wanted = [stack.run(members, batch, one) for batch, one in enumerate(inputs)]
            present.remove(layer)
            stay = [member for member in members if member != layer]
            with differentiable(model, []), ExitStack() as fusing:
                contexts = [fused_tensors(stack.layers[one], removed, self.rank, generator) for one in stay]
                fused = [one for context in contexts for one in fusing.enter_context(context)]
                self._train(fused, wanted, partial(_output, stack, stay, inputs))
            progress(done + 1, len(removed_layers), "layers fused")

    def _train(
        self, fused: list[_FusedTensor], wanted: list[Tensor], output: Callable[[int], Tensor]
    ) -> None:
        """Adam on the distance of `output(batch)` to `wanted[batch]`."""
        coefficients = [one for tensor in fused for one in tensor.coefficients]
        updates = [one for tensor in fused for one in tensor.update] if self.update_rate else []
        groups = [(coefficients, self.learning_rate), (updates, self.update_rate)]
        optimizer = torch.optim.Adam(
            [{"params": params, "lr": rate} for params, rate in groups if params], betas=(0.9, 0.95)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * len(wanted))
        for _ in range(self.epochs):
            for batch, target in enumerate(wanted):
                loss = distance(output(batch), target)
                if not bool(torch.isfinite(loss)):
                    raise StageFailed(
                        f"repair 'fusion' diverged with learning_rate {self.learning_rate:g}; lower "
                        "repair_settings.learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _check_memory(self, model: Model, input_ids: Tensor, removed: Iterable[Tensor], members: int) -> None:
        """Raise BadInput where the passes through `members` layers need more memory than is free."""
        beside = 0
        for one in removed:
            # Factors in float32, their gradients and two moments; and twice the tensor on the way.
            factors = 2 * self.rank * (one.shape[-1] + one.shape[-2]) if one.dim() > 1 else one.numel()
            beside += 4 * 4 * factors + 2 * 4 * one.numel()
        batches = math.ceil(self.batch_tokens / BATCH_TOKENS)
        check_memory(model, input_ids, members * batches, beside * members, "prune.repair: none")


def neighbours(present: Sequence[int], layer: int, group: int) -> list[int]:
    """The layers of a group around `layer`, itself among them, of the layers `present`.

    Where it would reach over an end it reaches further to the other side.
    """
    size = min(group + 1, len(present))
    start = min(max(0, present.index(layer) - size // 2), len(present) - size)
    return list(present[start : start + size])


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over tokens of the squared distance over the squared norm of what is wanted."""
    wanted = wanted.float()
    sizes = wanted.square().sum(dim=-1).clamp_min(1e-30)
    return ((found.float() - wanted).square().sum(dim=-1) / sizes).mean()


def _output(stack: LayerStack, members: Sequence[int], inputs: Sequence[Tensor], batch: int) -> Tensor:
    return stack.run(members, batch, inputs[batch])


class _FusedTensor(nn.Module):
    """A tensor with its share of a removed one: float32 masters; what it computes has the tensor's dtype."""

    def __init__(self, removed: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.removed = removed
        self.coefficients, self.update = nn.ParameterList(), nn.ParameterList()
        if removed.dim() == 1:
            self.coefficients.append(torch.zeros_like(removed, dtype=torch.float32))
            return
        *outer, outputs, inputs = removed.shape
        for pair in (self.coefficients, self.update):
            start = torch.rand(*outer, rank, inputs, generator=generator) * 2 - 1
            pair.append(removed.new_zeros(*outer, outputs, rank, dtype=torch.float32))
            pair.append((start / math.sqrt(inputs)).to(removed.device))

    def forward(self, weight: Tensor) -> Tensor:
        first, *second = self.coefficients
        scale = first @ second[0] if second else first
        fused = weight.float() + scale * self.removed.float()
        if second:
            fused = fused + self.update[0] @ self.update[1]
        return fused.to(weight.dtype)


def matrices(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's weights of two dimensions and more, and the biases beside them, by name."""
    found = {name: one.detach() for name, one in layer.named_parameters()}
    modules = {name.rpartition(".")[0] for name, one in found.items() if one.dim() > 1}
    return {name: one for name, one in found.items() if one.dim() > 1 or name.rpartition(".")[0] in modules}


@contextmanager
def fused_tensors(
    layer: nn.Module, removed: Mapping[str, Tensor], rank: int, generator: torch.Generator
) -> Iterator[list[_FusedTensor]]:
    """Fuse `removed` into the tensors of `layer` of these names; afterwards its weights are the results."""
    fused: dict[str, _FusedTensor] = {}
    try:
        for name, tensor in removed.items():
            module, _, attribute = name.rpartition(".")
            fused[name] = _FusedTensor(tensor, rank, generator)
            parametrize.register_parametrization(layer.get_submodule(module), attribute, fused[name])
        yield list(fused.values())
    finally:
        for name in fused:
            owner, attribute = layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            with torch.no_grad():
                value = getattr(owner, attribute).detach()
                parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
                owner.get_parameter(attribute).copy_(value)
