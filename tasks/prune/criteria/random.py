"""Random: scores drawn without looking at anything, the control that every other criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Needs, require


@dataclass(frozen=True)
class Random:
    """Scores drawn at random: the control."""

    needs: ClassVar[Needs] = "weights"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers")

    seed: int = 17
    """Of the draw."""

    def __post_init__(self) -> None:
        require("random", 0, seed=self.seed)

    def score(self, units: Units) -> Tensor:
        """Uniform in [0, 1), set by the seed, the layer's place and the kind: float32 [units, 1].

        So the order in which layers and kinds are scored, and on which machine, does not matter.
        """
        source = np.random.default_rng([self.seed, units.layer, *units.part.kind.encode()])
        return torch.from_numpy(source.random((units.count, 1), dtype=np.float32))
