"""Removed layers grafted onto their neighbours (FuseGPT, Pei et al., arXiv 2411.14507).

One removed layer after another is taken out of a group of neighbours, all of whose weights are given a share
of its own, W + B A + (C D) * R (tasks/prune/grafts.py), and B, A, C, D are trained so that the group without
it gives what the group with it gave on calibration tokens. Then they are merged: the result is a stock model.

As the authors' code (JarvisPei/FuseGPT) in group, start, ranks, rates, epochs and schedule; a step there is
16,384 tokens. Different here: the plan says beforehand which layers go, and they are taken front to back;
biases and norms are not trained at `update_rate`; the loss is the squared distance to the group's output over
its squared norm, token by token, where the code takes the divergence of softmaxes over a batch's samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.stages import Unit
from resprout.tasks.core.job import Progress
from resprout.tasks.models.stack import Stack
from resprout.tasks.models.walk import BATCH_TOKENS
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.gradients import check_memory, differentiable
from resprout.tasks.prune.grafts import Graft, grafted, matrices
from resprout.tasks.prune.plan import Plan
from resprout.tasks.prune.repairs.none import NoRepair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Fusion(NoRepair):
    """Removed layers grafted onto their neighbours by trained low-rank coefficients."""

    units: ClassVar[tuple[Unit, ...]] = ("layers",)
    whole_model: ClassVar[bool] = True
    alike_layers: ClassVar[bool] = True

    group: int = 7
    """Neighbours that a removed layer is grafted onto: as many in front as behind, or one more."""
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

    def prepare(self, model: PreTrainedModel, plan: Plan, input_ids: Tensor, progress: Progress) -> None:
        """Change the layers that stay in place; those that go are left for the cut.

        Costs a forward and backward pass through the group in every epoch for each removed layer. A float16
        model, or one that does not fit with its activations, raises BadInput; a loss that is not finite
        StageFailed.
        """
        if model.dtype == torch.float16:
            raise BadInput("repair 'fusion' cannot train in float16; set model.dtype: bfloat16 or float32")
        stack = Stack(model, input_ids, self.batch_tokens)
        present = list(range(len(stack.layers)))
        kept = {plan.source(layer) for layer in range(len(plan.layers))}
        gone = [layer for layer in present if layer not in kept]
        generator = torch.Generator().manual_seed(self.seed)
        for done, layer in enumerate(gone):
            members = neighbours(present, layer, self.group)
            removed = matrices(stack.layers[layer])
            self._check_memory(model, input_ids, removed.values(), len(members))
            with torch.no_grad():
                before = present[: present.index(members[0])]
                inputs = [stack.run(before, batch, one) for batch, one in enumerate(stack.start)]
                wanted = [stack.run(members, batch, one) for batch, one in enumerate(inputs)]
            present.remove(layer)
            stay = [member for member in members if member != layer]
            with differentiable(model, []), ExitStack() as grafting:
                contexts = [grafted(stack.layers[one], removed, self.rank, generator) for one in stay]
                grafts = [graft for one in contexts for graft in grafting.enter_context(one)]
                self._train(grafts, wanted, partial(_output, stack, stay, inputs))
            progress(done + 1, len(gone), "layers fused")

    def _train(self, grafts: list[Graft], wanted: list[Tensor], output: Callable[[int], Tensor]) -> None:
        """Adam on the distance of `output(batch)` to `wanted[batch]`."""
        coefficients = [one for graft in grafts for one in graft.coefficients]
        updates = [one for graft in grafts for one in graft.update] if self.update_rate else []
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

    def _check_memory(
        self, model: PreTrainedModel, input_ids: Tensor, removed: Iterable[Tensor], members: int
    ) -> None:
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


def _output(stack: Stack, members: Sequence[int], inputs: Sequence[Tensor], batch: int) -> Tensor:
    return stack.run(members, batch, inputs[batch])
