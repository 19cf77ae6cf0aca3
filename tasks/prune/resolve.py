"""Which criterion, allocator and repair a prune section means; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.presets import load_preset
from resprout.configs.schema import PruneConfig
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS
from resprout.tasks.registry import Registry


@dataclass(frozen=True)
class Resolved:
    """Registered names of the three parts of a pruning method, and all their settings."""

    criterion: str
    allocator: str
    repair: str
    criterion_settings: Mapping[str, Any] = field(default_factory=dict)
    allocator_settings: Mapping[str, Any] = field(default_factory=dict)
    repair_settings: Mapping[str, Any] = field(default_factory=dict)

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
    criterion = config.criterion or preset.criterion
    allocator = config.allocator or getattr(preset.allocator, config.layout)
    repair = config.repair or preset.repair

    def settings(kind: str, registry: Registry[Any], name: str, preset_name: str) -> dict[str, Any]:
        own = getattr(preset, f"{kind}_settings") if name == preset_name else {}
        return registry.settings(name, {**own, **getattr(config, f"{kind}_settings")})

    resolved = Resolved(
        criterion,
        allocator,
        repair,
        settings("criterion", CRITERIA, criterion, preset.criterion),
        settings("allocator", ALLOCATORS, allocator, getattr(preset.allocator, config.layout)),
        settings("repair", REPAIRS, repair, preset.repair),
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
    if config.layout == "per_layer" and "hidden" in config.units:
        raise BadInput(
            "prune.units names hidden, whose channels run through all layers alike, but prune.layout is "
            "per_layer; give layout: uniform, or leave hidden out"
        )
    basis, turned = (
        registry.entry(name).declared.get("basis", "channels")
        for registry, name in ((CRITERIA, resolved.criterion), (REPAIRS, resolved.repair))
    )
    if basis != turned:
        raise BadInput(
            f"criterion '{resolved.criterion}' scores hidden {basis}, but repair '{resolved.repair}' keeps "
            f"{turned}; give two that agree, as method: slicegpt does"
        )
    if config.layout == "per_layer" and {"kv_groups", "heads"} <= set(config.units):
        raise BadInput(
            "prune.units names kv_groups and heads, whose sizes depend on each other, which layout: "
            "per_layer cannot weigh; give one of them, or layout: uniform"
        )
    return resolved
