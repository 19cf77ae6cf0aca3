"""Compatibility of a prune section's parts: resolves names and settings, refuses what does not fit together.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.presets import DEPTH, REDEFINED, Preset, Unit, load_preset, preset_names
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.methods import Entry, Registry
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS

LAYERWISE = ("weights", "inputs")
"""Needs of criteria that look at one layer at a time."""
DEPENDENT: tuple[tuple[Unit, Unit], ...] = (("kv_groups", "heads"), ("experts", "ffn"))
"""Kinds of which one is a part of the other."""


@dataclass(frozen=True)
class Resolved:
    """Registered names of the three parts of a pruning method, and all their settings.

    `method` is the preset's name where its own allocator spends the budget over its own layers; otherwise the
    name says what does: `flap (uniform widths)`, or which: `taylor (no layers spared)`.
    """

    method: str
    criterion: str
    allocator: str
    repair: str
    spared_front: float = 0
    spared_back: float = 0
    criterion_settings: Mapping[str, Any] = field(default_factory=dict)
    allocator_settings: Mapping[str, Any] = field(default_factory=dict)
    repair_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prune_modules(self) -> list[str]:
        """Modules whose code decides the pruned weights, beside the plan."""
        return [REPAIRS.entry(self.repair).module]


def resolve(config: PruneConfig) -> Resolved:
    """The preset `config.method` with the config's own choices put over it.

    An unknown name, an allocator that gives layers different widths under `layout: uniform`, or one with
    which nothing of the method's paper is left, raises BadInput.
    """
    preset = load_preset(config.method)
    meant = "layout" in config.model_fields_set and config.layout == "per_layer"
    if config.method in REDEFINED and not meant:
        raise BadInput(REDEFINED[config.method])
    own_criterion = preset.criterion_of(config.units)
    criterion = config.criterion or own_criterion
    own = preset.allocator.of(config.units, config.layout)
    allocator = config.allocator or own
    repair = config.repair or preset.repair
    if config.target.whole and REPAIRS.entry(repair).declared.get("adds_biases"):
        # Nothing goes, so that there is nothing to make good for, and no room for more parameters.
        repair = "none"

    def settings(kind: str, registry: Registry[Any], name: str, preset_name: str) -> dict[str, Any]:
        given = getattr(preset, f"{kind}_settings") if name == preset_name else {}
        if kind == "allocator":
            # They are of those that a preset has for some layouts and units; `uniform` has none.
            given = {key: value for key, value in given.items() if key in registry.entry(name).settings}
        return registry.settings(name, {**given, **getattr(config, f"{kind}_settings")})

    spared = _spared(config, preset)
    resolved = Resolved(
        _name(config, preset, allocator, spared),
        criterion,
        allocator,
        repair,
        *spared,
        settings("criterion", CRITERIA, criterion, own_criterion),
        settings("allocator", ALLOCATORS, allocator, own),
        settings("repair", REPAIRS, repair, preset.repair),
    )
    scored = CRITERIA.entry(resolved.criterion).declared["units"]
    if unscored := [unit for unit in config.units if unit not in scored]:
        raise BadInput(
            f"criterion '{resolved.criterion}' cannot score {' and '.join(unscored)}, which prune.units "
            f"names; it scores {', '.join(scored)}; what prune.method scores: `resprout methods`"
        )
    if CRITERIA.entry(criterion).declared.get("needs_general") and not config.general:
        raise BadInput(
            f"criterion '{criterion}' weighs calibrate.text against open-domain text, but prune.general is "
            "empty; name at least one source"
        )
    for part, registry, name in (
        ("allocator", ALLOCATORS, resolved.allocator),
        ("repair", REPAIRS, resolved.repair),
    ):
        _check_units(part, registry, name, config.units)
    if config.layout == "uniform" and ALLOCATORS.entry(resolved.allocator).declared["per_layer"]:
        raise BadInput(
            f"prune.allocator '{resolved.allocator}' gives each layer a width of its own, but prune.layout "
            "is uniform; give allocator: uniform, or layout: per_layer"
        )
    if config.min_kept_ratio and (unheld := [unit for unit in config.units if unit in (*DEPTH, "hidden")]):
        raise BadInput(
            f"prune.min_kept_ratio is a share of a layer's own units, but prune.units names {unheld[0]}; "
            "leave it out, or prune widths of layers"
        )
    rotates = bool(REPAIRS.entry(repair).declared.get("rotates_blocks"))
    if config.layout == "per_layer" and "hidden" in config.units and not rotates:
        raise BadInput(
            "prune.units names hidden, whose channels run through all layers alike, but prune.layout is "
            "per_layer; give layout: uniform, or leave hidden out"
        )
    if config.layout == "uniform" and rotates:
        raise BadInput(
            f"repair '{repair}' gives each block a basis of its own, which no stock class has, but "
            "prune.layout is uniform; give layout: per_layer, or repair: rotation"
        )
    scored_basis, kept_basis = (
        registry.entry(name).declared.get("basis", "channels")
        for registry, name in ((CRITERIA, resolved.criterion), (REPAIRS, resolved.repair))
    )
    if scored_basis != kept_basis:
        raise BadInput(
            f"criterion '{resolved.criterion}' scores hidden {scored_basis}, but repair '{resolved.repair}' "
            f"keeps {kept_basis}; give two that agree, as method: shared_rotation does"
        )
    for pair in DEPENDENT if config.layout == "per_layer" else ():
        if set(pair) <= set(config.units):
            raise BadInput(
                f"prune.units names {' and '.join(pair)}, whose sizes depend on each other, which layout: "
                "per_layer cannot weigh; give one of them, or layout: uniform"
            )
    if config.target.timed and not ALLOCATORS.entry(allocator).declared.get("latency"):
        timed = [one.name for one in ALLOCATORS if one.declared.get("latency")]
        raise BadInput(
            f"prune.target is a latency, which allocator '{allocator}' cannot spend; give allocator: "
            f"{' or '.join(timed)} and layout: per_layer, or a target in parameters"
        )
    if config.target.timed and (untimed := set(config.units) - {"ffn", "kv_groups"}):
        raise BadInput(
            f"prune.target is a latency, but prune.units names {' and '.join(sorted(untimed))}; give "
            "ffn, kv_groups or both"
        )
    if config.memory == "stream" and (whole := _at_once(config, resolved)):
        raise BadInput(
            f"prune.memory is stream, but {whole[0]} runs the whole model at once; give memory: whole, or "
            "one that works layer by layer (`resprout methods NAME` says what each needs)"
        )
    return resolved


def _name(config: PruneConfig, preset: Preset, allocator: str, spared: tuple[float, float]) -> str:
    """The method's name, with what spends the budget, and the layers spared, where that is not the paper's.

    Where nothing of the paper is left then, BadInput names the method that it would be.
    """
    paper = [preset.allocator.of(config.units, layout) for layout in preset.layouts]
    alike = config.units[0] in DEPTH or config.layout in preset.layouts
    if alike and allocator in paper:
        if spared == (preset.spared_front, preset.spared_back) or config.units[0] in DEPTH:
            return config.method
        ends = " and ".join(f"{end:g}" for end in spared) if any(spared) else "no"
        return f"{config.method} ({ends} layers spared)"
    if config.units[0] in ALLOCATORS.entry(allocator).declared.get("units", ()) and config.units[0] in DEPTH:
        others = " or ".join(_choosing(config.units, allocator))
        raise BadInput(
            f"prune.allocator '{allocator}' is not how prune.method {config.method} chooses "
            f"{config.units[0]}; leave it out, or give method: {others}"
        )
    uniform = not ALLOCATORS.entry(allocator).declared["per_layer"]
    widths = "uniform widths" if uniform else f"widths by {allocator}"
    if preset.reduces_to is None or allocator in paper or config.criterion not in (None, preset.criterion):
        return f"{config.method} ({widths})"
    own = f"layout: {preset.layouts[0]}" if config.allocator is None else f"allocator: {paper[0]}"
    raise BadInput(
        f"prune.method {config.method} with {widths} is {preset.reduces_to}: its paper is about how the "
        f"budget is spent; give method: {preset.reduces_to}, or {own}"
    )


def _choosing(units: tuple[Unit, ...], allocator: str) -> list[str]:
    """The presets that choose these units of depth by this allocator."""
    presets = {name: load_preset(name) for name in preset_names()}
    return [
        name
        for name, preset in presets.items()
        if preset.allocator.depth == allocator
        and units[0] in CRITERIA.entry(preset.criterion_of(units)).declared["units"]
    ]


def _spared(config: PruneConfig, preset: Preset) -> tuple[float, float]:
    """Layers that keep their widths at the front and at the back, as numbers or shares of the depth.

    Where they would make layers differ that may not, or nothing has a width, BadInput.
    """
    front = preset.spared_front if config.spared_front is None else config.spared_front
    back = preset.spared_back if config.spared_back is None else config.spared_back
    asked = config.spared_front or config.spared_back
    who = "prune.spared_front or spared_back" if asked else f"prune.method {config.method}"
    if not (front or back):
        return 0, 0
    if config.units[0] in DEPTH:
        if asked:
            raise BadInput(
                f"{who} spares widths, but prune.units names {config.units[0]}; leave it out, or prune widths"
            )
        return 0, 0
    if config.layout == "uniform":
        raise BadInput(
            f"{who} spares layers at the ends, which stay wider than the others, but prune.layout is "
            "uniform; give layout: per_layer, or spared_front: 0 and spared_back: 0"
        )
    return front, back


def need_the_whole_model(config: PruneConfig) -> list[str]:
    """The methods of the section that need all weights in memory at once."""
    return _at_once(config, resolve(config))


def _at_once(config: PruneConfig, named: Resolved) -> list[str]:
    needs = {
        f"criterion '{named.criterion}'": CRITERIA.entry(named.criterion).declared["needs"] not in LAYERWISE,
        f"allocator '{named.allocator}'": tries_model(config, named.allocator),
        f"repair '{named.repair}'": REPAIRS.entry(named.repair).declared.get("whole_model", False),
    }
    return [who for who, needed in needs.items() if needed]


def needs_general(config: PruneConfig) -> bool:
    """Whether the criterion uses open-domain text (`prune.general`) beside the calibration data."""
    return bool(CRITERIA.entry(resolve(config).criterion).declared.get("needs_general"))


def tries_model(config: PruneConfig, allocator: str) -> bool:
    """Whether planning runs the model: the allocator does, or a latency is measured."""
    return config.target.timed or bool(ALLOCATORS.entry(allocator).declared["runs_model"])


def _check_units(part: str, registry: Registry[Any], name: str, units: tuple[Unit, ...]) -> None:
    def unable(entry: Entry) -> list[Unit]:
        fit = entry.declared.get("units")
        return [unit for unit in units if (unit in DEPTH if fit is None else unit not in fit)]

    if left := unable(registry.entry(name)):
        fitting = [entry.name for entry in registry if not unable(entry)]
        raise BadInput(
            f"{part} '{name}' is not for {' and '.join(left)}, which prune.units names; give prune.{part}: "
            f"{' or '.join(fitting)}"
        )
