"""Selection methods by name: `(job, inputs, pool, progress) -> Choice`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from resprout.tasks.select.pool import Choice, Pool

METHODS: Registry[Callable[[Job[SelectConfig], Mapping[str, Path], Pool, Progress], Choice]] = Registry(
    "selection method"
)
METHODS.add(
    "paser",
    "resprout.tasks.select.paser:choose",
    "rows of the capabilities that pruning hurt most, without contradictions",
    "PASER, arXiv 2502.12594",
)
METHODS.add(
    "random",
    "resprout.tasks.select.random_rows:choose",
    "rows drawn at random: the baseline at equal tokens",
)


CHECKS: Registry[Callable[[SelectConfig, int], None]] = Registry("selection check")
"""What a method asks of a pool's size and of its settings, found before a weight is loaded."""
CHECKS.add(
    "paser",
    "resprout.tasks.select.paser_size:check_size",
    "at most 4,000 rows, enough of them for the clusters",
)


def modules(config: Any) -> list[str]:
    """Modules of the method that a select section selects."""
    return [METHODS.entry(config.method).module]
