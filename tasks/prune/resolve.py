"""Which criterion, allocator and repair a prune section means; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from resprout.configs.errors import BadInput
from resprout.configs.presets import load_preset
from resprout.configs.schema import PruneConfig
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS


@dataclass(frozen=True)
class Resolved:
    """Registered names of the three parts of a pruning method."""

    criterion: str
    allocator: str
    repair: str

    @property
    def plan_modules(self) -> list[str]:
        """Modules whose code decides the plan."""
        return [CRITERIA.entry(self.criterion).module, ALLOCATORS.entry(self.allocator).module]

    @property
    def prune_modules(self) -> list[str]:
        """Modules whose code decides the pruned weights, beside the plan."""
        return [REPAIRS.entry(self.repair).module]


def resolve(config: PruneConfig) -> Resolved:
    """The preset `config.method` with the config's own choices put over it.

    An unknown name, or an allocator that gives layers different widths under `layout: uniform`, raises
    BadInput.
    """
    preset = load_preset(config.method)
    resolved = Resolved(
        config.criterion or preset.criterion,
        config.allocator or getattr(preset.allocator, config.layout),
        config.repair or preset.repair,
    )
    scored = CRITERIA.entry(resolved.criterion).declared["units"]
    if unscored := [unit for unit in config.units if unit not in scored]:
        raise BadInput(
            f"criterion '{resolved.criterion}' cannot score {' and '.join(unscored)}, which prune.units "
            f"names; it scores {', '.join(scored)}"
        )
    REPAIRS.entry(resolved.repair)
    if config.layout == "uniform" and ALLOCATORS.entry(resolved.allocator).declared["per_layer"]:
        raise BadInput(
            f"prune.allocator '{resolved.allocator}' gives each layer a width of its own, but prune.layout "
            "is uniform; give allocator: uniform, or layout: per_layer"
        )
    if config.layout == "per_layer" and {"kv_groups", "heads"} <= set(config.units):
        raise BadInput(
            "prune.units names kv_groups and heads, whose sizes depend on each other, which layout: "
            "per_layer cannot weigh; give one of them, or layout: uniform"
        )
    return resolved
