"""LoRA gradient: importance from the gradients of adapters alone (LoRAPrune, 2024, arXiv 2305.18403).

Each coupled projection W gets a low-rank adapter, W + s B A, and only A and B are trained, one step a batch.
The gradient of W is never computed: what a step of A and B would do to their product stands for it,

    I_ij = [ (dL/dB A + B dL/dA - dL/dB dL/dA)_ij (W + s B A)_ij ]^2

summed over the weights of a unit, and averaged over steps by I <- decay I + (1 - decay) I_step (paper,
sec. 3.2 and 3.3). The authors' code (aim-uofa/LoRAPrune at 4da5272) takes absolute values for the square and
brings each projection's importances to norm 1 before it adds them up; here the paper is followed. The paper
prunes while it trains; here all steps are over before units are removed, and the adapters are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import Layer, Units, anatomy
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs, Unit, require
from resprout.tasks.prune.scoring import (
    causal_loss,
    check_memory,
    check_samples,
    differentiable,
    rows_of_batch,
)


@dataclass
class _Adapter:
    """A in float32 [rank, inputs] and B [outputs, rank] beside a projection of one layer."""

    module: nn.Module
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The projection gives s B A x more while the context is open."""

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            inner = functional.linear(x, self.a.to(x.dtype))
            return output + functional.linear(inner, self.b.to(x.dtype)) * self.scale

        handle = self.module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def importance(self) -> Tensor:
        """I of each weight after a backward pass, in the weight's layout; the only thing as large as it."""
        a, b, of_a, of_b = self.a.detach(), self.b.detach(), self.a.grad, self.b.grad
        if of_a is None or of_b is None:
            raise ValueError("the adapter has no gradients")
        # (dB A + B dA - dB dA) as one product of twice the rank.
        change = torch.cat([of_b, b], dim=1) @ torch.cat([a - of_a, of_a])
        weight = self.weight.T if self.transposed else self.weight
        change.mul_(torch.addmm(weight.float(), b, a, alpha=self.scale)).square_()
        return change.T if self.transposed else change


@dataclass(frozen=True)
class LoraGradient:
    """Gradient times weight, squared, the gradient worked out from those of low-rank adapters."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")

    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """The adapters' outputs are multiplied by alpha / rank."""
    learning_rate: float = 1e-4
    """Rate of AdamW."""
    passes: int = 1
    """Passes over the calibration data."""
    decay: float = 0.9
    """Share of the moving average that stays at each step."""
    seed: int = 17
    """Of the adapters' first values."""

    def __post_init__(self) -> None:
        require("lora_gradient", 1, rank=self.rank, passes=self.passes)
        require("lora_gradient", 0, 0.9999, decay=self.decay)
        require("lora_gradient", 0, alpha=self.alpha, learning_rate=self.learning_rate)

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """Float32 [units, 1] of each layer and kind; one forward and backward pass over the data a pass.

        No gradient of a weight is computed or held: beside the model there are adapters, their gradients and
        AdamW's moments, and one weight's importance at a time.
        """
        check_samples(input_ids)
        layers = anatomy(model).layers
        units = [{kind: layer.units(kind) for kind in kinds} for layer in layers]
        adapters = self.adapters(model, kinds)
        flat = [one for by_name in adapters for one in by_name.values()]
        trained = [tensor for one in flat for tensor in (one.a, one.b)]
        # Gradients and two moments of each; then one importance at a time, with two factors as large.
        one_at_a_time = 3 * 4 * max(one.weight.numel() for one in flat)
        check_memory(model, input_ids, len(layers), 3 * sum(one.nbytes for one in trained) + one_at_a_time)
        averages = [
            {kind: torch.zeros(one.count, device=model.device) for kind, one in each.items()}
            for each in units
        ]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
        batches = input_ids.split(rows_of_batch(input_ids)) * self.passes
        with differentiable(model, []), ExitStack() as attached:
            for one in flat:
                attached.enter_context(one.attached())
            for step, ids in enumerate(batches):
                causal_loss(model, ids).backward()
                for by_kind, by_name, average in zip(units, adapters, averages, strict=True):
                    self._add(by_kind, by_name, average)
                optimizer.step()
                optimizer.zero_grad()
                progress(step + 1, len(batches), "batches differentiated")
        return [{kind: one.unsqueeze(1) for kind, one in average.items()} for average in averages]

    def adapters(self, model: Model, kinds: Kinds) -> list[dict[str, _Adapter]]:
        """A fresh adapter for each coupled projection of each layer, by the weight's name; B is zero."""
        generator = torch.Generator().manual_seed(self.seed)
        return [
            {
                name: self._adapter(layer, name, generator)
                for name, weight in layer.tensors.items()
                if weight.dim() == 2
                and name in {one.name for kind in kinds for one in layer.part(kind).slices}
            }
            for layer in anatomy(model).layers
        ]

    def _adapter(self, layer: Layer, name: str, generator: torch.Generator) -> _Adapter:
        weight, transposed = layer.tensors[name], layer.family.transposed
        outputs, inputs = weight.T.shape if transposed else weight.shape
        # As LoRA starts: A uniform within 1 / sqrt(inputs), B zero.
        a = (torch.rand(self.rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
        return _Adapter(
            layer.module.get_submodule(name.removesuffix(".weight")),
            weight,
            a.to(weight.device).requires_grad_(),
            torch.zeros(outputs, self.rank, device=weight.device, requires_grad=True),
            self.alpha / self.rank,
            transposed,
        )

    def _add(
        self, units: Mapping[Unit, Units], adapters: Mapping[str, _Adapter], averages: Mapping[Unit, Tensor]
    ) -> None:
        """Bring the moving averages of a layer one step on."""
        for average in averages.values():
            average.mul_(self.decay)
        for name, adapter in adapters.items():
            importance = adapter.importance()
            for kind, one in units.items():
                for part in one.part.slices:
                    if part.name == name:
                        averages[kind].add_(part.sums(importance), alpha=1 - self.decay)
