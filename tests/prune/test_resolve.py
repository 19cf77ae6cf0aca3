"""Presets name criterion, allocator and repair; the config's own choices win; wrong names suggest."""

from __future__ import annotations

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.presets import FOLDER, load_preset, preset_names
from resprout.configs.schema import PruneConfig
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS
from resprout.tasks.prune.resolve import Resolved, resolve
from resprout.tasks.prune.stage import plan, prune


def config(**values):
    return PruneConfig.model_validate({"target": {"params_ratio": 0.9}, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "flap"}, ("flap", "uniform", "bias")),
        ({"method": "flap", "layout": "per_layer"}, ("flap", "global_standardised", "bias")),
        ({"method": "wanda_sp"}, ("wanda_sp", "uniform", "none")),
        ({"method": "magnitude", "repair": "least_squares"}, ("magnitude", "uniform", "least_squares")),
        ({"method": "flap", "criterion": "wanda_sp", "repair": "none"}, ("wanda_sp", "uniform", "none")),
        ({"layout": "per_layer", "allocator": "uniform"}, ("flap", "uniform", "bias")),
    ],
)
def test_resolved_names(values, expected):
    assert resolve(config(**values)) == Resolved(*expected)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_starts_with_its_command_and_names_what_exists(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# resprout run ")
    assert f"prune.method={name}" in text.splitlines()[0]
    preset = load_preset(name)
    assert preset.criterion in CRITERIA
    assert preset.repair in REPAIRS
    assert not ALLOCATORS.get(preset.allocator.uniform).per_layer
    assert preset.allocator.per_layer in ALLOCATORS
    resolve(config(method=name))


def test_all_presets_are_found():
    assert preset_names() == ["flap", "magnitude", "wanda_sp"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "flp"}, r"method 'flp'; did you mean 'flap'\? Known: flap, magnitude, wanda_sp"),
        ({"criterion": "wanda"}, r"unknown criterion 'wanda'; did you mean 'wanda_sp'\?"),
        ({"allocator": "nothing"}, r"unknown allocator 'nothing'.* Known: global_standardised, uniform"),
        ({"allocator": "global_standardised"}, "is uniform; give allocator: uniform, or layout: per_layer"),
    ],
)
def test_wrong_choices(values, says):
    with pytest.raises(BadInput, match=says):
        resolve(config(**values))


def test_stages_name_only_the_modules_that_the_config_selects():
    """The cache key hashes these: an edit to flap.py must not touch a plan by wanda_sp."""
    room = "resprout.tasks.prune"
    wanda = config(method="wanda_sp", repair="least_squares")
    assert plan.methods(wanda) == [f"{room}.criteria.wanda_sp", f"{room}.allocators.uniform"]
    assert prune.methods(wanda) == [f"{room}.repairs.least_squares"]
