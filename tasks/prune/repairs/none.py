"""No repair: the kept weights stay as they are."""

from __future__ import annotations

from torch import Tensor

from resprout.tasks.models.anatomy import Part
from resprout.tasks.prune.contracts import Repaired
from resprout.tasks.prune.statistics import Statistic


class NoRepair:
    """Cuts and changes nothing else."""

    def statistic(self, features: int) -> Statistic | None:
        """None: looks at no data."""
        return None

    def repair(self, part: Part, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The kept columns."""
        return Repaired(part.reader.linear.weight[:, kept])
