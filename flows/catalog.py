"""All that a run config may name, read from the registries: in a list, or one whole; imports no method."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.presets import Layout, Preset, Unit
from resprout.tasks.core.methods import Entry, Registry, Setting
from resprout.tasks.core.syntax import parse


def registries() -> dict[str, Registry[Any]]:
    """The registries by the section of the config that names their methods."""
    from resprout.tasks.calibrate.stage import METHODS as CALIBRATE
    from resprout.tasks.export.format import FORMATS
    from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS, SCHEDULES
    from resprout.tasks.quantize.format import FORMATS as QUANTIZE
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
        "quantize.formats": QUANTIZE,
        "export.formats": FORMATS,
    }


COSTS = {
    "weights": "no data",
    "inputs": "a forward pass, layer by layer",
    "gradients": "a forward and a backward pass",
    "model": "passes of its own",
}
"""Cost of a criterion by its engine, where it does not say more itself."""


ANSWERS = {
    "multiple_choice": "chosen answers",
    "generate_until": "written answers",
    "loglikelihood": "expected answers",
}
"""How tasks are answered, by lm-eval's name of it."""


def catalog() -> dict[str, list[dict[str, Any]]]:
    """Every method, preset and evaluation task: name, summary, source, and what it declares of itself."""
    from resprout.configs.presets import load_preset, preset_names
    from resprout.configs.suites import shipped_suites, shipped_tasks

    listed = {section: [_shown(entry) for entry in registry] for section, registry in registries().items()}
    listed["prune.method"] = [_preset(name, load_preset(name)) for name in preset_names()]
    listed["evaluate.suites"] = [_suite(name) for name in shipped_suites()]
    listed["evaluate.suites.tasks"] = [_task(name) for name in shipped_tasks()]
    return dict(sorted(listed.items()))


def _suite(name: str) -> dict[str, Any]:
    """A suite: its tasks by capability."""
    from resprout.configs.schema import SuiteConfig
    from resprout.configs.suites import shipped_suite

    suite = SuiteConfig.model_validate(shipped_suite(name))
    tasks = ", ".join(task.name for task in suite.tasks)
    return {"name": name, "summary": tasks, "source": f"configs/evaluation/suites/{name}.yaml"}


def _task(name: str) -> dict[str, Any]:
    """An evaluation task: what it is about, and how it is answered."""
    from resprout.tasks.evaluate.task_files import read_task

    settings = read_task(name, Path())
    kind = ANSWERS[settings["output_type"]]
    few = settings.get("num_fewshot") or 0
    shown = f" after {few} examples" if few else ""
    return {
        "name": name,
        "summary": f"{settings['metadata']['capability']}, {kind}{shown}",
        "source": f"configs/evaluation/{name}.yaml",
    }


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
    if "types" in entry.declared:
        shown["types"] = list(entry.declared["types"])
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


@dataclass(frozen=True)
class Description:
    """One method whole: the key of the config that names it, and its properties in words, by their names."""

    section: str
    name: str
    rows: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    about: str = ""


def with_units(
    listed: Mapping[str, list[dict[str, Any]]], unit: str | None
) -> dict[str, list[dict[str, Any]]]:
    """Methods that can prune these units; BadInput for unknown units."""
    if unit is not None and unit not in get_args(Unit):
        raise BadInput(f"--units is {unit}; give one of {', '.join(get_args(Unit))}")
    found = {
        section: [entry for entry in entries if unit is None or unit in entry.get("units", ())]
        for section, entries in listed.items()
    }
    return {section: entries for section, entries in found.items() if entries}


def describe(name: str) -> list[Description]:
    """Each method of that name, of whatever kind; BadInput names those that are spelt alike."""
    from resprout.configs.presets import load_preset

    listed = catalog()
    found = [
        Description(section, name, _properties(entry) | _keys(section), *_more(section, name))
        if section != "prune.method"
        else Description(section, name, _properties(entry) | _parts(load_preset(name)))
        for section, entries in listed.items()
        for entry in entries
        if entry["name"] == name
    ]
    if found:
        return found
    names = sorted({entry["name"] for entries in listed.values() for entry in entries})
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise BadInput(f"there is no method '{name}'; {hint}`resprout methods` lists all")


def _properties(entry: Mapping[str, Any]) -> dict[str, str]:
    """Summary, source, units, layouts and cost of an entry of the catalog."""
    own = entry.get("own_units", ())
    units = [f"{unit} (by default)" if unit in own else unit for unit in entry.get("units", ())]
    layouts = [
        layout if name == entry["name"] else f"{layout}, then called {name}"
        for layout, name in entry.get("layouts", {}).items()
    ]
    rows = {
        "what it does": entry["summary"],
        "source": entry["source"],
        "units": ", ".join(units),
        "types": ", ".join(f"{entry['name']}:{kind}" for kind in entry.get("types", ())),
        "layouts": "; ".join(layouts),
        "needs": NEEDS.get(entry.get("needs", ""), ""),
        "costs": entry.get("cost", ""),
    }
    return {key: value for key, value in rows.items() if value}


NEEDS = {
    "weights": "the weights alone",
    "inputs": "calibration data",
    "gradients": "calibration data and memory for gradients",
    "model": "calibration data and the whole model in memory",
}
"""Inputs of each scoring engine, by its name."""


def _parts(preset: Preset) -> dict[str, str]:
    """The criterion, allocator and repair of a preset with its own settings, and what the criterion costs."""
    from resprout.tasks.prune.registry import CRITERIA

    criterion = CRITERIA.entry(preset.criterion).declared
    needs, own = criterion["needs"], preset.allocator
    depth = f"; layers and sublayers by {preset.depth_criterion}" if preset.depth_criterion else ""
    rows = {
        "criterion": preset.criterion + _set(preset.criterion_settings) + depth,
        "allocator": f"uniform: {own.uniform}; per_layer: {own.per_layer}" + _set(preset.allocator_settings),
        "repair": preset.repair + _set(preset.repair_settings),
        "spares": _spared(preset),
        "needs": NEEDS[needs],
        "costs": f"scoring takes {criterion.get('cost', COSTS[needs])}",
    }
    return {key: value for key, value in rows.items() if value}


def _keys(section: str) -> dict[str, str]:
    """Where the settings of a method stand that has no own, but the keys of its section."""
    room, _, kind = section.partition(".")
    return {"settings": f"keys of the section {room} (configs/keys.md)"} if (room, kind) in SHARED else {}


SHARED = {(room, "method") for room in ("calibrate", "select", "recover")}
"""Sections whose methods share their keys."""


def _set(settings: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f" ({given})" if given else ""


def _spared(preset: Preset) -> str:
    if not (preset.spared_front or preset.spared_back):
        return ""
    return f"{preset.spared_front:g} of the layers at the front and {preset.spared_back:g} at the back"


def _more(section: str, name: str) -> tuple[dict[str, str], str]:
    """The settings of a method with their defaults and meanings, and the text in front of its module."""
    registry = registries().get(section)
    if registry is None:
        return {}, ""
    entry = registry.entry(name)
    settings = {
        key: f"{_setting(one)}{f': {one.meaning}' if one.meaning else ''}"
        for key, one in entry.settings.items()
    }
    found = importlib.util.find_spec(entry.module)
    text = ast.get_docstring(parse(Path(found.origin))) if found is not None and found.origin else ""
    return settings, text or ""
