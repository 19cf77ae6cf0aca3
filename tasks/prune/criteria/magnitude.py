"""Magnitude: the norm of the weights of a unit, all of them or those that read it.

All coupled weights (`of: coupled`) is the structured form of Global MP (arXiv 2209.14624) and of Zhu and
Gupta (arXiv 1710.01878), who rank single weights by size: rows that make the unit and columns that read
it count alike, as in the L1 and L2 baselines of LLM-Pruner (arXiv 2305.11627). The columns of the down
and output projections alone (`of: reader`) are the baseline of An et al. (arXiv 2312.11983). `norm: l1`
is that of Li et al. for filters (arXiv 1608.08710).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.contracts import Needs


@dataclass(frozen=True)
class Magnitude:
    """L1 or L2 norm of all weights coupled to a unit; needs no data."""

    needs: ClassVar[Needs] = "weights"
    units: ClassVar[tuple[Unit, ...]] = ("ffn", "kv_groups", "heads", "experts", "hidden")

    norm: Literal["l1", "l2"] = "l2"
    """Norm over the weights."""
    of: Literal["coupled", "reader"] = "coupled"
    """All weights that leave with a unit, or those that read its features."""

    def score(self, units: Units) -> Tensor:
        """Float32 [units, 1] of all coupled weights, [units, features per unit] of the reader's columns."""
        power = {"l1": 1, "l2": 2}[self.norm]
        if self.of == "reader":
            if units.part.reader is None:
                raise BadInput(
                    f"criterion_settings.of is reader, but no one module reads {units.part.kind}; give of: "
                    "coupled"
                )
            return units.by_unit(units.weight.float().norm(p=power, dim=0))
        sums = [one.sums(units.tensors[one.name].float().abs().pow(power)) for one in units.part.slices]
        return torch.stack(sums).sum(dim=0).pow(1 / power).unsqueeze(1)
