"""ECoFLaP's layer ratios without gradients (Sung et al., ICLR 2024, arXiv 2310.02998).

The importance of a weight matrix is |L(W + eps z) - L(W - eps z)| / (2 eps), z standard normal noise on it
alone and L the next-token loss: two forward passes, which start at its layer, for each calibration sample,
each with its own noise. That of a layer is the sum over its removable matrices, averaged over samples and
divided by its number of weights (`avg` in the authors' code, ylsung/ECoFLaP). No layer loses more than the
target's share and `share_margin`, as the authors' scripts set `max_sparsity_per_layer`; what is left is spent
in proportion to the importances. Those scripts look at 32 samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.tasks.models.ablation import Ablation, next_token_loss
from resprout.tasks.prune.budget import require_bench, spend_shares
from resprout.tasks.prune.interfaces import Bench, Kinds, Request, Scores, Shape, require
from resprout.tasks.prune.target import kept_share

if TYPE_CHECKING:
    from resprout.tasks.models.anatomy import Layer


@dataclass(frozen=True)
class ZerothOrder:
    """Shares by how much random changes of a layer's weights change the loss."""

    per_layer: ClassVar[bool] = True
    runs_model: ClassVar[bool] = True
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts")

    noise_std: float = 0.001
    """Standard deviation of the noise (eps)."""
    samples: int = 32
    """Calibration samples that are used, from the first; all where there are fewer."""
    share_margin: float = 0.1
    """No layer loses more than the target's share of its units and this."""
    seed: int = 17
    """Of the noise."""

    def __post_init__(self) -> None:
        require("zeroth_order", 1e-6, 1, noise_std=self.noise_std)
        require("zeroth_order", 0, 1, share_margin=self.share_margin)
        require("zeroth_order", 1, samples=self.samples)
        require("zeroth_order", 0, seed=self.seed)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        found = importances(require_bench(bench), request.kinds, self.noise_std, self.samples, self.seed)
        base = kept_share(request)
        shares = kept_shares(found, base, max(base - self.share_margin, 0.0))
        return spend_shares(request, dict.fromkeys(request.kinds, shares))


def kept_shares(importances: list[float], base: float, floor: float) -> list[float]:
    """The floor, and the rest of `base` in proportion to the importances."""
    mean = sum(importances) / len(importances)
    return [floor + (base - floor) * (one / mean if mean else 1.0) for one in importances]


def importances(bench: Bench, kinds: Kinds, std: float, samples: int, seed: int) -> list[float]:
    """Change of the loss by changes of each layer's matrices, per weight and unit of the change."""
    ablation = Ablation(bench.model)
    layers = bench.among(ablation.parts.layers)
    looked_at = bench.input_ids[:samples].split(1)
    found = [0.0] * len(layers)
    generator = torch.Generator().manual_seed(seed)
    for done, ids in enumerate(looked_at):
        stream = ablation.inputs(ids)
        for index, layer in enumerate(layers):
            weights = removable(layer, kinds)
            count = sum(one.numel() for one in weights)
            for weight in weights:
                noise = std * torch.randn(weight.shape, generator=generator)
                losses = []
                for moved in (noise, -noise):
                    with _moved(weight, moved):
                        start = bench.first + index
                        logits = ablation.logits(ids, start=start, hidden=stream[start])
                    losses.append(next_token_loss(logits, ids))
                found[index] += abs(losses[0] - losses[1]) / (2 * std) / count / len(looked_at)
        bench.progress(done + 1, len(looked_at), "samples tried with noise")
    return found


def removable(layer: Layer, kinds: Kinds) -> list[Tensor]:
    """The matrices of which units of these kinds have slices."""
    names = {one.name for kind in kinds for one in layer.part(kind).slices}
    return [one for name, one in layer.tensors.items() if name in names and one.dim() > 1]


@contextmanager
def _moved(weight: Tensor, noise: Tensor) -> Iterator[None]:
    """Add the noise while the context is open; afterwards every bit is as it was."""
    before = weight.clone()
    try:
        weight.add_(noise.to(weight.device, weight.dtype))
        yield
    finally:
        weight.copy_(before)
