"""The values that weights of a compressed-tensors type can take: codes times a scale for each group."""

from __future__ import annotations

import torch
from torch import Tensor

from resprout.tasks.compressed_tensors.library import weight_arguments
from resprout.tasks.compressed_tensors.types import TensorsType


class Grid:
    """Scales by the largest weight of each group, and nearest values, as the library computes them."""

    def __init__(self, kind: TensorsType, dtype: torch.dtype) -> None:
        from compressed_tensors.quantization.utils import calculate_range

        self.dtype = dtype
        """Of the scales, and of the weights when they are unpacked."""
        self._kind = kind
        self._arguments = weight_arguments(kind)
        self._range = calculate_range(self._arguments, "cpu")

    def group(self, inputs: int) -> int:
        """Weights of a row of so many inputs that share a scale."""
        return self._kind.group or inputs

    def scales(self, weight: Tensor) -> Tensor:
        """A scale for each group of `weight` [outputs, inputs]: [outputs, groups], in the grid's dtype."""
        from compressed_tensors.quantization.utils import calculate_qparams

        groups = weight.float().unflatten(-1, (-1, self.group(weight.shape[1])))
        scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), self._arguments)
        scales = scales.to(self.dtype)
        # One that is 0 in a narrower dtype would make every weight of its group infinite.
        return scales.where(scales > 0, torch.finfo(self.dtype).tiny)

    def nearest(self, weight: Tensor, scales: Tensor) -> Tensor:
        """The nearest value for each of `weight`, float32, with scales that broadcast to it: float32.

        Values are what unpacking gives: the product in the grid's dtype.
        """
        from compressed_tensors.quantization.quant_args import round_to_quantized_type_args

        lowest, highest = (end.to(weight.device) for end in self._range)
        scales = scales.float()
        codes = round_to_quantized_type_args(weight / scales, self._arguments, lowest, highest)
        return (codes * scales).to(self.dtype).float()

    def round(self, weight: Tensor, scales: Tensor) -> Tensor:
        """The nearest values of a whole matrix [outputs, inputs], in the grid's dtype."""
        groups = weight.float().unflatten(-1, (scales.shape[1], -1))
        return self.nearest(groups, scales.unsqueeze(-1)).flatten(-2).to(self.dtype)
