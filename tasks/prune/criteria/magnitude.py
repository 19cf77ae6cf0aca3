"""Magnitude: the norm of the weights of a unit, all of them or those that read it.

All coupled weights (`of: coupled`), rows that make the unit and columns that read it alike, are the L1 and
L2 baselines of LLM-Pruner (arXiv 2305.11627). The columns of the down and output projections alone
(`of: reader`) are the baseline of An et al. (arXiv 2312.11983). `norm: l1` is that of Li et al. for filters
(arXiv 1608.08710). `norm: mean` is the average of abs(w), by which units of different sizes compare: the
structured form of methods that rank single weights by size, as Global MP does (arXiv 2209.14624).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs


@dataclass(frozen=True)
class Magnitude:
    """L1 or L2 norm, or mean size, of all weights coupled to a unit; needs no data."""

    needs: ClassVar[Needs] = "weights"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden")

    norm: Literal["l1", "l2", "mean"] = "l2"
    """Norm over the weights; mean: the average of their absolute values."""
    of: Literal["coupled", "reader"] = "coupled"
    """All weights that leave with a unit, or those that read its features."""

    def score(self, units: Units) -> Tensor:
        """Float32 [units, 1] of all coupled weights, [units, features per unit] of the reader's columns."""
        power = {"l1": 1, "l2": 2, "mean": 1}[self.norm]
        if self.of == "reader":
            if units.part.reader is None:
                raise BadInput(
                    f"criterion_settings.of is reader, but no one module reads {units.part.kind}; give of: "
                    "coupled"
                )
            outputs = len(units.weight) if self.norm == "mean" else 1
            return units.by_unit(units.weight.float().norm(p=power, dim=0) / outputs)
        sizes = [units.tensors[one.name].float().abs().pow(power) for one in units.part.slices]
        sums = [one.sums(size) for one, size in zip(units.part.slices, sizes, strict=True)]
        norms = torch.stack(sums).sum(dim=0).pow(1 / power)
        if self.norm == "mean":
            numbers = [
                one.sums(torch.ones_like(size)) for one, size in zip(units.part.slices, sizes, strict=True)
            ]
            norms = norms / torch.stack(numbers).sum(dim=0)
        return norms.unsqueeze(1)
