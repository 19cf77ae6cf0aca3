"""Statistics of a linear layer's inputs and gradients over the calibration data, summed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units


class Statistic(Protocol):
    """Grows with every batch of inputs [rows, tokens, features].

    With `light: ClassVar[bool] = True` it holds a few numbers for each feature, so that those of all layers
    may be in memory together.
    """

    def update(self, inputs: Tensor) -> None: ...


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divisor rows) of each column of [rows, columns], float32 on the same device.

    On a CPU by the kernel of batch norm, which takes bfloat16 to float32 as it goes: a copy in float32, or
    torch's own `var_mean` over the first dimension, takes several times as long.
    """
    if values.is_cuda:
        variance, mean = torch.var_mean(values.float(), dim=0, correction=0)
        return mean, variance
    if values.dtype in (torch.bfloat16, torch.float16):
        return _moments(values)
    # A variance may be smaller than what a float32 sum of large values loses; above, where it is of values
    # of eight or eleven bits, it cannot.
    values = values.float()
    mean, variance = _moments(values - values[0])
    return mean + values[0], variance


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    columns = values.shape[1]
    # Columns are channels, as they lie in memory: one image of `rows` by 1, channels last.
    image = values.contiguous().view(1, -1, 1, columns).permute(0, 3, 1, 2)
    # Running statistics in float32 ask for results in float32; nothing else is made of them.
    running = torch.zeros(columns)
    mean, variance = torch.batch_norm_update_stats(image, running, running, 0.0)
    return mean, variance


class Moments:
    """Count, mean and centred sum of squares of each feature, float64 [features], on the inputs' device.

    Batches are joined by the pairwise update of Chan et al. (1983), so that a variance which is small
    beside its mean does not cancel.
    """

    light: ClassVar[bool] = True

    def __init__(self, features: int) -> None:
        self.tokens = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.centred = torch.zeros(features, dtype=torch.float64)

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features], or [tokens, features]."""
        inputs = inputs.flatten(0, -2)
        mean, variance = moments(inputs)
        added, total = len(inputs), self.tokens + len(inputs)
        self.mean, self.centred = self.mean.to(mean.device), self.centred.to(mean.device)
        step = mean.double() - self.mean
        self.centred += variance.double() * added + step.square() * (self.tokens * added / total)
        self.mean += step * (added / total)
        self.tokens = total

    @property
    def variance(self) -> Tensor:
        """Sample variance, divisor tokens - 1: float32 [features]."""
        return (self.centred / max(1, self.tokens - 1)).float()

    @property
    def norm(self) -> Tensor:
        """Euclidean norm over all tokens: float32 [features]."""
        return (self.centred + self.tokens * self.mean.square()).sqrt().float()


_AGGREGATIONS: Mapping[str, Callable[[int, Tensor, Tensor], Tensor]] = {
    "mean": lambda items, mean, variance: mean,
    "l2": lambda items, mean, variance: (items * (variance + mean.square())).sqrt(),
    "var": lambda items, mean, variance: variance,
}
"""Aggregates of a number of items by their mean and their variance (divisor items)."""

TAKEN_UP = 64
"""Samples that are taken up into the moments at a time."""


class SampleAggregates:
    """Inputs aggregated over the tokens of each sample, and the moments of that over samples."""

    light: ClassVar[bool] = True

    def __init__(self, features: int, over_tokens: str) -> None:
        self._how = over_tokens
        self._samples = Moments(features)
        self._new: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features]."""
        seen = inputs.abs() if self._how == "mean" else inputs
        self._new += [_AGGREGATIONS[self._how](inputs.shape[1], *moments(sample)) for sample in seen]
        if len(self._new) >= TAKEN_UP:
            self._take_up()

    def _take_up(self) -> None:
        if self._new:
            self._samples.update(torch.stack(self._new))
            self._new = []

    def joined(self, over_samples: str) -> Tensor:
        """One number for each feature: float32 [features]."""
        self._take_up()
        samples = self._samples
        variance = samples.centred / samples.tokens
        return _AGGREGATIONS[over_samples](samples.tokens, samples.mean, variance).float()


class Gram:
    """Sum of x x^T over all tokens: float32 [features, features], on the device of the inputs."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.tokens = 0
        self._sum: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [rows, tokens, features], or [tokens, features]."""
        inputs = inputs.flatten(0, -2)
        self.tokens += len(inputs)
        if self._sum is None:
            self._sum = inputs.new_zeros(self.features, self.features, dtype=torch.float32)
        if inputs.is_cuda and inputs.dtype != torch.float32:
            self._sum += torch.mm(inputs.T, inputs, out_dtype=torch.float32)
            return
        values = inputs.float()
        with _bfloat16_products(inputs.dtype == torch.bfloat16):
            self._sum.addmm_(values.T, values)

    @property
    def matrix(self) -> Tensor:
        """The sum; zeros where nothing was seen."""
        return torch.zeros(self.features, self.features) if self._sum is None else self._sum


class GradientSum:
    """Sum over batches of `of(gradient, share)`, of the reader's gradients: float32, as large as it."""

    def __init__(self, units: Units, of: Callable[[Tensor, float], Tensor]) -> None:
        self._of, self._transposed = of, units.part.transposed
        self.names = (f"{units.part.reader}.weight",)
        self.elements = units.weight.numel()
        self._sum: Tensor | None = None

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the reader's weight."""
        if self._sum is None:
            self._sum = torch.zeros_like(gradient, dtype=torch.float32)
        self._sum += self._of(gradient.float(), share)

    @property
    def matrix(self) -> Tensor:
        """The sum: [outputs, features]."""
        if self._sum is None:
            raise ValueError("no gradient was given")
        return self._sum.T if self._transposed else self._sum


class Targets:
    """Inputs of a linear layer in one model and the outputs that it should give: sums over tokens in float32.

    `gram` of the inputs [features, features], `outputs` the sum of y x^T [outputs, features].
    """

    def __init__(self, features: int) -> None:
        self.gram = Gram(features)
        self._outputs: Tensor | None = None
        self._sum: Tensor | None = None

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add a batch of inputs [tokens, features] and of outputs [tokens, outputs]."""
        self.gram.update(inputs)
        if self._outputs is None or self._sum is None:
            self._outputs = inputs.new_zeros(outputs.shape[1], inputs.shape[1], dtype=torch.float32)
            self._sum = inputs.new_zeros(inputs.shape[1], dtype=torch.float32)
        self._sum += inputs.sum(dim=0, dtype=torch.float32)
        if inputs.is_cuda and inputs.dtype != torch.float32:
            self._outputs += torch.mm(outputs.T, inputs, out_dtype=torch.float32)
            return
        with _bfloat16_products(inputs.dtype == outputs.dtype == torch.bfloat16):
            self._outputs.addmm_(outputs.float().T, inputs.float())

    def outputs(self, bias: Tensor | None = None) -> Tensor:
        """The sum of (y - bias) x^T: float32 [outputs, features]."""
        if self._outputs is None or self._sum is None:
            raise ValueError("no inputs were seen")
        return self._outputs if bias is None else self._outputs - torch.outer(bias.float(), self._sum)


@contextmanager
def _bfloat16_products(lossless: bool) -> Iterator[None]:
    """Let CPU matrix products of float32 round their factors to bfloat16 and still add up in float32.

    Activations of a bfloat16 model lose nothing by that, and processors with bfloat16 units are three
    times as fast at it.
    """
    backends: Any = torch.backends
    backend = backends.mkldnn.matmul
    before = backend.fp32_precision
    if lossless:
        backend.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before
