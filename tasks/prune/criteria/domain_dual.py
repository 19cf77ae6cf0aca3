"""D-Pruner's dual importance: of a domain, with generality as a regulariser (Zhang et al., arXiv 2405.06275).

General importance of a weight is the error of its layer's outputs on open-domain text (`prune.general`) once
it alone is removed, G_ij = W_ij^2 / [H^-1]_jj with H = X X^T + damping * mean(diag X X^T) I of the inputs of
its layer (optimal brain surgeon). The loss on the domain's calibration data is L + c sum_ij G_ij (a g_ij)^2,
a g being the step that training would take, whose gradient is, with h the diagonal of the Hessian,

    g' = g + 2 c a^2 G g h.

A weight is worth |g' W - h' W^2 / 2|, h and h' by the Fisher information g^2 and g'^2 of a batch; a unit is
worth the sum over its coupled weights, added up over batches.

The paper prunes single weights while it trains; here weights stay as they are, and units are removed. A
released copy of its code (compressionOrg/D-Pruner) leaves the g out of G g h, adds h' to g' with the other
sign and W^3 besides, and fixes c = 0.1, a = 0.03 and h = g^2 / 1000 for gradients that still bear the loss
scale of float16, so that the regulariser's size hangs on that scale. Here 2 c a^2 is set batch by batch and
tensor by tensor so that the mean size of the regulariser's gradient is `generality` times the loss's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import Units
from resprout.tasks.models.forward import run_layerwise, watch
from resprout.tasks.prune.interfaces import Kinds, Model, Needs, require
from resprout.tasks.prune.statistics import Gram

if TYPE_CHECKING:
    Freedoms = Mapping[tuple[int, str], Tensor]
    """By layer and weight: [H^-1]_jj of its layer's inputs, float32 [inputs]."""


@dataclass(frozen=True)
class DomainDual:
    """Estimated change of a domain's loss, regularised by what weights are worth on open-domain text."""

    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")
    needs_general: ClassVar[bool] = True

    generality: float = 0.1
    """Mean size of the regulariser's gradient, as a share of the loss's; 0 scores the domain alone."""
    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""

    def __post_init__(self) -> None:
        require("domain_dual", 0, generality=self.generality)
        require("domain_dual", 0, damping=self.damping)

    def with_general(
        self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
    ) -> _Dual:
        """The criterion once it has seen open-domain text; one pass, one Gram matrix a coupled projection.

        A singular Hessian raises StageFailed.
        """
        freedoms: dict[tuple[int, str], Tensor] = {}
        for step in run_layerwise(model, input_ids, only=mine):
            parts = [step.layer.part(kind) for kind in kinds]
            tensors = step.layer.tensors
            names = {one.name for part in parts for one in part.slices if tensors[one.name].dim() > 1}
            with ExitStack() as watching:
                grams: dict[str, Gram] = {}
                for name in sorted(names):
                    inputs = tensors[name].shape[0 if step.layer.family.transposed else 1]
                    grams[name] = Gram(inputs)
                    module = step.layer.module.get_submodule(name.removesuffix(".weight"))
                    watching.enter_context(watch(module, grams[name].update))
                step.run_all()
            for name, gram in grams.items():
                freedoms[step.index, name] = freedom(gram, self.damping)
            progress(step.index + 1, mine.stop, "layers seen on general text")
        return _Dual(self.generality, freedoms)


def freedom(gram: Gram, damping: float) -> Tensor:
    """The diagonal of (X X^T + damping * mean(diag) I)^-1, solved in float64: float32 [inputs]."""
    hessian = gram.matrix.double()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed) or (damping <= 0 and gram.tokens < len(hessian)):
        raise StageFailed(
            f"criterion 'domain_dual' cannot invert the Hessian of {gram.tokens} general tokens for "
            f"{len(hessian)} inputs with damping {damping}; give more calibrate.samples, or "
            "criterion_settings.damping: 0.01 or more"
        )
    return torch.cholesky_inverse(factor).diagonal().float()


@dataclass(frozen=True)
class _Dual:
    generality: float
    freedoms: Freedoms
    needs: ClassVar[Needs] = "gradients"
    units: ClassVar[Kinds] = DomainDual.units

    def gradients(self, units: Units) -> _Importance:
        """The importance of each unit."""
        return _Importance(units, self.generality, self.freedoms)

    def statistic(self, features: int) -> None:
        """None: nothing of the reader's inputs."""

    def score(self, units: Units, gradients: _Importance, inputs: None) -> Tensor:
        """Float32 [units, 1]."""
        return gradients.total.unsqueeze(1)


class _Importance:
    """Sum over batches and coupled weights of |g' W - (g' W)^2 / 2|: float32 [units]."""

    def __init__(self, units: Units, generality: float, freedoms: Freedoms) -> None:
        self._units, self._generality, self._freedoms = units, generality, freedoms
        self._slices = {one.name: one for one in units.part.slices if units.tensors[one.name].dim() > 1}
        self.names = tuple(self._slices)
        self.elements = units.count
        self.total = torch.zeros(units.count)

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the weight `name`."""
        units = self._units
        weight = units.tensors[name].float()
        freedoms = self._freedoms[units.layer, name].to(weight.device)
        general = weight.square() / (freedoms[:, None] if units.part.transposed else freedoms)
        change = regularised(gradient.float(), general, self._generality).mul_(weight)
        lost = (change - change.square() / 2).abs_()
        self.total = self.total.to(lost.device).add_(self._slices[name].sums(lost), alpha=share)


def regularised(gradient: Tensor, general: Tensor, generality: float) -> Tensor:
    """The gradient g', the second term's mean size being `generality` times the first's."""
    tiny = torch.finfo(torch.float32).tiny
    # Of the largest, so that third powers do not vanish.
    pull = (gradient / gradient.abs().max().clamp_min(tiny)).pow_(3).mul_(general)
    size = gradient.abs().mean() / pull.abs().mean().clamp_min(tiny)
    return gradient + pull.mul_(generality * size)
