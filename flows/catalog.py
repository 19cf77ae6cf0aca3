"""All that a run config may name, read from the registries; imports no method."""

from __future__ import annotations

from typing import Any

from resprout.tasks.registry import Registry


def registries() -> dict[str, Registry[Any]]:
    """The registries by the section of the config that names their methods."""
    from resprout.tasks.calibrate.registry import METHODS as CALIBRATE
    from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS
    from resprout.tasks.recover.registry import METHODS as RECOVER
    from resprout.tasks.select.registry import METHODS as SELECT

    return {
        "calibrate.method": CALIBRATE,
        "prune.criterion": CRITERIA,
        "prune.allocator": ALLOCATORS,
        "prune.repair": REPAIRS,
        "select.method": SELECT,
        "recover.method": RECOVER,
    }


def catalog() -> dict[str, list[dict[str, str]]]:
    """Name, summary and source of every method, preset and evaluation task."""
    from resprout.configs.presets import load_preset, preset_names
    from resprout.tasks.evaluate.task_files import shipped_tasks

    listed = {
        section: [
            {"name": entry.name, "summary": entry.summary, "source": entry.source} for entry in registry
        ]
        for section, registry in registries().items()
    }
    presets = [(name, load_preset(name)) for name in preset_names()]
    listed["prune.method"] = [
        {"name": name, "summary": preset.summary, "source": preset.source} for name, preset in presets
    ]
    listed["evaluate.zero_shot.tasks"] = [
        {
            "name": name,
            "summary": "multiple choice through lm-eval",
            "source": f"configs/evaluation/{name}.yaml",
        }
        for name in shipped_tasks()
    ]
    return dict(sorted(listed.items()))
