"""No repair: the kept weights stay as they are."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from resprout.tasks.models.anatomy import Units
from resprout.tasks.prune.interfaces import Kinds, Repaired
from resprout.tasks.prune.statistics import Statistic


class NoRepair:
    """Cut and change nothing else."""

    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers")

    def statistic(self, features: int) -> Statistic | None:
        """None: uses no data."""
        return None

    def repair(self, units: Units, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The kept columns."""
        return Repaired(units.weight[:, kept])
