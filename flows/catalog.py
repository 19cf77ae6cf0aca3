"""All that a run config may name, read from the registries; imports no method."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args

from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.presets import Layout, Preset
from resprout.tasks.core.methods import Entry, Registry, Setting


def registries() -> dict[str, Registry[Any]]:
    """The registries by the section of the config that names their methods."""
    from resprout.tasks.calibrate.stage import METHODS as CALIBRATE
    from resprout.tasks.export.format import FORMATS
    from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS, SCHEDULES
    from resprout.tasks.recover.stage import METHODS as RECOVER
    from resprout.tasks.select.stage import METHODS as SELECT
    from resprout.tasks.sparsify.pattern import METHODS as SPARSIFY

    return {
        "calibrate.method": CALIBRATE,
        "prune.criterion": CRITERIA,
        "prune.allocator": ALLOCATORS,
        "prune.repair": REPAIRS,
        "prune.schedule": SCHEDULES,
        "select.method": SELECT,
        "recover.method": RECOVER,
        "sparsify.method": SPARSIFY,
        "export.formats": FORMATS,
    }


COSTS = {
    "weights": "no data",
    "inputs": "a forward pass, layer by layer",
    "gradients": "a forward and a backward pass",
    "model": "passes of its own",
}
"""Cost of a criterion by its engine, where it does not say more itself."""


def catalog() -> dict[str, list[dict[str, Any]]]:
    """Every method, preset and evaluation task: name, summary, source, and what it declares of itself."""
    from resprout.configs.presets import load_preset, preset_names
    from resprout.configs.schema import shipped_tasks

    listed = {section: [_shown(entry) for entry in registry] for section, registry in registries().items()}
    listed["prune.method"] = [_preset(name, load_preset(name)) for name in preset_names()]
    listed["evaluate.zero_shot.tasks"] = [
        {
            "name": name,
            "summary": "multiple choice through lm-eval",
            "source": f"configs/evaluation/{name}.yaml",
        }
        for name in shipped_tasks()
    ]
    return dict(sorted(listed.items()))


def _preset(name: str, preset: Preset) -> dict[str, Any]:
    """A preset: the units that it can score, those that its paper prunes, and its name in each layout."""
    from resprout.tasks.prune.registry import CRITERIA

    criteria = [preset.criterion, *([preset.depth_criterion] if preset.depth_criterion else [])]
    scored = [
        unit
        for one in criteria
        for unit in CRITERIA.entry(one).declared["units"]
        if preset.criterion_of((unit,)) == one
    ]
    return {
        "name": name,
        "summary": preset.summary,
        "source": preset.source,
        "parts": [
            *criteria,
            *dict.fromkeys(preset.allocator.model_dump(exclude_unset=True).values()),
            preset.repair,
        ],
        "units": list(dict.fromkeys([*preset.units, *scored])),
        "own_units": list(preset.units),
        "layouts": _layouts(name, preset),
    }


def _layouts(name: str, preset: Preset) -> dict[str, str]:
    """The name of a preset in each layout that it can have, its own first."""
    from resprout.configs.schema import PruneConfig
    from resprout.tasks.prune.compatibility import resolve

    given = {"method": name, "target": {"params_ratio": 0.5}, "general": [{"source": "any.jsonl"}]}
    found = {}
    for layout in dict.fromkeys([*preset.layouts, *get_args(Layout)]):
        # A layout that cannot be is a fault of the section, or of its parts.
        with suppress(BadInput, ValidationError):
            found[layout] = resolve(PruneConfig.model_validate({**given, "layout": layout})).method
    return found


def _shown(entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": entry.name, "summary": entry.summary, "source": entry.source}
    if "units" in entry.declared:
        shown["units"] = list(entry.declared["units"])
    if "needs" in entry.declared:
        shown["needs"] = entry.declared["needs"]
        shown["cost"] = entry.declared.get("cost", COSTS[entry.declared["needs"]])
    if entry.settings:
        shown["settings"] = {name: _setting(setting) for name, setting in entry.settings.items()}
    return shown


def _setting(setting: Setting) -> str:
    """The default, and what else is allowed."""
    others = [str(value) for value in setting.allowed if value != setting.default]
    return str(setting.default) + (f" ({', '.join(others)})" if others else "")
