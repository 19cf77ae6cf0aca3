"""The student with its loss in one module, so that it can be wrapped for several devices as a whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resprout.configs.schema import RecoverConfig
from resprout.tasks.data.response import narrow_head
from resprout.tasks.recover import losses
from resprout.tasks.recover.batches import Batch, target_states
from resprout.tasks.recover.matching import Kind, Pairs, outputs
from resprout.tasks.recover.teachers import Online, Piece, Teacher

HEAD_ELEMENTS = 2**26
"""Logits (tokens * vocabulary) of a piece; of more pieces than one they are computed again going backward."""
GRADIENT_BYTES = 2**29
"""Where nothing but the logits' gradients is held for the backward pass, they may take so much."""


class Loss(NamedTuple):
    """Scalars, means over targets; all but the first two are 0 without a teacher, or where not asked for."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    states: Tensor


class Learner(nn.Module):
    """A model, or one with adapters around it, and what it is taught by."""

    def __init__(
        self, student: Any, teacher: Teacher | None, config: RecoverConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.config, self.dtype = student, teacher, config, dtype
        self.learned = config.distill_weight != 1
        """Whether the targets themselves are, beside what the teacher says of them."""
        self.pairs: list[tuple[float, Pairs]] = []
        """Pairs of modules whose outputs are compared, and the weight of each kind."""
        if isinstance(teacher, Online):
            kinds: tuple[Kind, ...] = ("hidden", "attention")
            weights = [(kind, getattr(config.distill, kind)) for kind in kinds]
            self.pairs = [(by, Pairs.of(self.base, teacher.dense, kind)) for kind, by in weights if by]

    @property
    def closed(self) -> bool:
        """Whether of the logits nothing but their gradients is held for the backward pass."""
        return isinstance(self.teacher, Online) and losses.is_closed(self.config.distill.loss, self.learned)

    @property
    def base(self) -> Any:
        """The model itself, in whose modules adapters lie."""
        return self.student.get_base_model() if isinstance(self.student, PeftModel) else self.student

    def autocast(self, device: torch.device) -> torch.autocast:
        """Products in the dtype of training, where that is not float32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, batch: Batch) -> Tensor:
        """Sums over the targets of a micro-batch of (cross-entropy, T^2 divergence, weighted states): [3]."""
        with self.autocast(batch.input_ids.device), ExitStack() as watching:
            watched = [
                [watching.enter_context(outputs(modules)) for modules in (pairs.student, pairs.dense)]
                for _, pairs in self.pairs
            ]
            taught = None if self.teacher is None else self.teacher.teach(batch)
            states, base = target_states(self.base, batch), self.base
            count = len(batch.targets)
            vocabulary = base.get_output_embeddings().weight.shape[0]
            size = max(1, HEAD_ELEMENTS // vocabulary)
            held = self.closed and count * vocabulary * self.dtype.itemsize <= GRADIENT_BYTES
            again = count > size and not held and torch.is_grad_enabled()
            found = []
            for start in range(0, count, size):
                part = slice(start, start + size)
                given = (states[part], batch.targets[part], taught, part)
                found.append(
                    checkpoint(self._sums, *given, use_reentrant=False) if again else self._sums(*given)
                )
            errors = [
                by * pairs.error(mine, theirs, batch.positions)
                for (by, pairs), (mine, theirs) in zip(self.pairs, watched, strict=True)
            ]
            known = torch.stack(found).sum(0)
            apart = torch.stack(errors).sum() if errors else known.new_zeros(())
            return torch.cat([known, apart[None]])

    def _sums(
        self, states: Tensor, targets: Tensor, taught: Callable[[slice], Piece] | None, part: slice
    ) -> Tensor:
        distill, temperature = self.config.distill, self.config.distill_temperature
        # Asked for here, the teacher's words are not held until the backward pass.
        wanted = None if taught is None else taught(part)
        logits = narrow_head(self.base, states)
        return losses.sums(logits, targets, wanted, distill.loss, distill.skew, temperature, self.learned)

    def loss(self, summed: Tensor, targets: int, weight: float | None = None) -> Loss:
        """(1 - w) CE + w T^2 D + S, means over `targets`.

        w is the `weight` or, where that is None, `distill_weight`, D what `distill.loss` names, S the states
        by the weights of `distill`.
        """
        cross_entropy, distillation, states = summed / targets
        given = self.config.distill_weight if weight is None else weight
        assert given != "auto"
        share = given if self.teacher is not None else 0.0
        total = (1 - share) * cross_entropy + share * distillation + states
        return Loss(total, cross_entropy.detach(), distillation.detach(), states.detach())
