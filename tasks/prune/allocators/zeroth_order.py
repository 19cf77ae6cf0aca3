"""ECoFLaP's layer ratios without gradients (Sung et al., ICLR 2024, arXiv 2310.02998).

The importance of layer l is |L(W + eps z) - L(W - eps z)| / (2 eps), z standard normal noise on its removable
weights alone and L the next-token loss: two forward passes, which start at the layer, for each batch of
calibration tokens, each with its own noise. Importances are averaged over batches and divided by the layer's
number of weights (`avg` in the authors' code). Every layer keeps at least 1 - max_pruned_share, or what the
budget lets all keep if that is less; what is left is spent in proportion to the importances.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.models.trial import BATCH_TOKENS, Trial, next_token_loss
from resprout.tasks.prune.bounds import require
from resprout.tasks.prune.spend import given, spend_shares
from resprout.tasks.prune.target import kept_share

if TYPE_CHECKING:
    from resprout.tasks.models.anatomy import Layer
    from resprout.tasks.prune.contracts import Bench, Request, Scores


@dataclass(frozen=True)
class ZerothOrder:
    """Shares by how much random changes of a layer's weights change the loss."""

    per_layer: ClassVar[bool] = True
    tries: ClassVar[bool] = True
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads", "experts")

    noise_std: float = 0.001
    """Standard deviation of the noise (eps)."""
    calibration_tokens: int = 4096
    """About this many calibration tokens are looked at: whole samples from the first, at least one."""
    max_pruned_share: float = 0.8
    """No layer loses more than this share of its units, where the budget allows it."""
    seed: int = 17
    """Of the noise."""

    def __post_init__(self) -> None:
        require("zeroth_order", 1e-6, 1, noise_std=self.noise_std)
        require("zeroth_order", 0, 1, max_pruned_share=self.max_pruned_share)
        require("zeroth_order", 1, calibration_tokens=self.calibration_tokens)
        require("zeroth_order", 0, seed=self.seed)

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """Widths of each layer, within the limit and as close to it as whole blocks allow."""
        found = importances(given(bench), request.kinds, self.noise_std, self.calibration_tokens, self.seed)
        shares = kept_shares(found, kept_share(request), 1 - self.max_pruned_share)
        return spend_shares(request, dict.fromkeys(request.kinds, shares))


def kept_shares(importances: list[float], base: float, floor: float) -> list[float]:
    """The floor, and the rest of `base` in proportion to the importances."""
    floor = min(floor, base)
    mean = sum(importances) / len(importances)
    return [floor + (base - floor) * (one / mean if mean else 1.0) for one in importances]


def importances(bench: Bench, kinds: tuple[Unit, ...], std: float, tokens: int, seed: int) -> list[float]:
    """What a change of the weights of each layer does to the loss, per weight and unit of the change."""
    trial = Trial(bench.model)
    layers = trial.parts.layers
    samples = bench.input_ids[: max(1, tokens // bench.input_ids.shape[1])]
    batches = samples.split(max(1, BATCH_TOKENS // samples.shape[1]))
    found = [0.0] * len(layers)
    generator = torch.Generator().manual_seed(seed)
    for done, ids in enumerate(batches):
        stream = trial.inputs(ids)
        for index, layer in enumerate(layers):
            weights = removable(layer, kinds)
            noise = [std * torch.randn(one.shape, generator=generator) for one in weights]
            losses = []
            for sign in (1, -1):
                with _moved(weights, [sign * one for one in noise]):
                    losses.append(next_token_loss(trial.logits(ids, start=index, hidden=stream[index]), ids))
            count = sum(one.numel() for one in weights)
            found[index] += abs(losses[0] - losses[1]) / (2 * std) / count / len(batches)
        bench.progress(done + 1, len(batches), "batches of noise tried")
    return found


def removable(layer: Layer, kinds: tuple[Unit, ...]) -> list[Tensor]:
    """The matrices of which units of these kinds have slices."""
    names = {one.name for kind in kinds for one in layer.part(kind).slices}
    return [one for name, one in layer.tensors.items() if name in names and one.dim() > 1]


@contextmanager
def _moved(weights: list[Tensor], noise: list[Tensor]) -> Iterator[None]:
    """Add the noise while the context is open; afterwards every bit is as it was."""
    before = [one.clone() for one in weights]
    try:
        for one, added in zip(weights, noise, strict=True):
            one.add_(added.to(one.device, one.dtype))
        yield
    finally:
        for one, was in zip(weights, before, strict=True):
            one.copy_(was)
