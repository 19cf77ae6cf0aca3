"""Presets name criterion, allocator and repair; the config's own choices win; wrong names suggest."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.load import load
from resprout.configs.presets import FOLDER, load_preset, preset_names
from resprout.configs.schema import PruneConfig
from resprout.flows.catalog import catalog
from resprout.tasks.core.job import Job
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS
from resprout.tasks.prune.stage import plan, prune, score


def config(**values):
    return PruneConfig.model_validate({"method": "flap", "target": {"params_ratio": 0.9}, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "flap"}, ("flap", "global_standardised", "bias")),
        ({"method": "flap", "layout": "uniform"}, ("flap", "uniform", "bias")),
        ({"method": "wanda_sp"}, ("wanda_sp", "uniform", "none")),
        ({"method": "magnitude", "repair": "least_squares"}, ("magnitude", "uniform", "least_squares")),
        ({"method": "taylor", "criterion": "wanda_sp", "repair": "none"}, ("wanda_sp", "uniform", "none")),
        ({"allocator": "uniform"}, ("flap", "uniform", "bias")),
        ({"method": "recommended"}, ("cfsp", "uniform", "least_squares")),
        ({"method": "recommended", "repair": "none"}, ("cfsp", "uniform", "none")),
    ],
)
def test_resolved_names(values, expected):
    found = resolve(config(**values))
    assert (found.criterion, found.allocator, found.repair) == expected


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_starts_with_its_command_and_names_what_exists(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# resprout run ")
    command = text.splitlines()[0]
    assert f"prune.method={name}" in command
    overrides = re.findall(r"\w+(?:\.\w+)*=(?:\[[^\]]*\]|\S+)", command)
    resolve(load(FOLDER.parent / "quickstart.yaml", overrides).config.prune)
    preset = load_preset(name)
    assert preset.criterion in CRITERIA
    assert preset.repair in REPAIRS
    assert not ALLOCATORS.get(preset.allocator.uniform).per_layer
    assert preset.allocator.per_layer in ALLOCATORS
    settable = [ALLOCATORS.entry(one).settings for one in preset.allocator.model_dump().values()]
    assert all(any(key in known for known in settable) for key in preset.allocator_settings)
    for layout in preset.layouts:
        resolve(config(method=name, layout=layout, general=[{"source": "general.jsonl"}]))


@pytest.mark.parametrize("name", ["adapt_pruner", "sap"])
def test_methods_of_rounds_say_that_this_is_their_one_shot_form(name):
    """Their papers train between many rounds of pruning, each measured anew."""
    (shown,) = [one for one in catalog()["prune.method"] if one["name"] == name]
    assert "one-shot form" in shown["summary"]
    assert "one-shot form" in shown["source"]


def test_global_magnitude_is_a_preset_and_magnitude_cites_what_it_does():
    """2209.14624: one ranking of raw sizes over all layers, a fixed minimum of weights in every layer."""
    sources = {one["name"]: one["source"] for one in catalog()["prune.method"]}
    assert "2209.14624" not in sources["magnitude"], "which is no ranking over layers"
    assert "2209.14624" in sources.get("global_magnitude", "")
    found = resolve(config(method="global_magnitude"))
    assert (found.criterion, found.allocator, found.repair) == ("magnitude", "global_ranking", "none")
    assert found.criterion_settings["norm"] == "mean"
    assert found.allocator_settings == {"min_threshold_percent": 0.05}, "the authors' code"


def test_evopress_searches_with_the_budget_of_its_authors():
    """scripts/run_drop_search.sh and run_prune_search.sh of IST-DASLab/EvoPress at 50888a0."""
    widths = resolve(config(method="evopress", units=["ffn"], layout="per_layer"))
    assert widths.allocator_settings["generations"] == 400
    assert widths.allocator_settings["children"] == 64
    assert widths.allocator_settings["survivors"] == "8,2,1"
    assert widths.allocator_settings["tokens"] == "2048,16384,65536"
    for units in (["layers"], ["sublayers"]):
        depth = resolve(config(method="evopress", units=units, layout="per_layer"))
        assert depth.allocator == "evolutionary_depth"
        settings = {name: depth.allocator_settings[name] for name in ("children", "survivors", "tokens")}
        assert settings == {"children": 32, "survivors": "2,1", "tokens": "2048,32768"}
        assert depth.allocator_settings["initial"] == 64
        quick = resolve(config(method="evopress_quick", units=units, layout="per_layer"))
        assert quick.allocator_settings["generations"] == 12


def test_all_presets_are_found():
    assert preset_names() == sorted(path.stem for path in FOLDER.iterdir())
    assert {"flap", "magnitude", "wanda_sp"} <= set(preset_names())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"criterion": "wanda"}, r"unknown criterion 'wanda'; did you mean 'wanda_sp'\?"),
        ({"allocator": "nothing"}, r"unknown allocator 'nothing'.* Known: .*global_standardised, .*uniform"),
        ({"units": ["layers"]}, "criterion 'flap' cannot score layers"),
        (
            {"method": "shortgpt", "units": ["layers"], "allocator": "uniform"},
            "allocator 'uniform' is not for layers, .* prune.allocator: evolutionary_depth or lowest_first",
        ),
        (
            {"units": ["ffn"], "allocator": "lowest_first"},
            "allocator 'lowest_first' is not for ffn, .* global_standardised or",
        ),
        (
            {"method": "shortgpt", "units": ["layers"], "repair": "bias"},
            "repair 'bias' is not for layers, .* give prune.repair: fusion or none",
        ),
        (
            {"layout": "uniform", "allocator": "global_standardised"},
            "is uniform; give allocator: uniform, or layout: per_layer",
        ),
    ],
)
def test_wrong_choices(values, says):
    with pytest.raises(BadInput, match=says):
        resolve(config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"method": "slicegpt", "layout": "uniform"},
        {"method": "slicegpt", "repair": "rotation"},
        {"method": "slicegpt"},
        {"method": "slicegpt_blocks", "layout": "per_layer"},
    ],
)
def test_a_config_of_the_old_slicegpt_is_refused_once_and_names_both_presets(values):
    """What was called slicegpt rotates the whole model at once, and is no longer what slicegpt means."""
    with pytest.raises(ValueError, match=r"slicegpt.*shared_rotation"):
        resolve(config(units=["hidden"], **values))
    known = resolve(config(method="slicegpt", units=["hidden"], layout="per_layer"))
    assert known.repair == "block_rotation", "the paper's, a rotation for each block"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "flp"}, r"method 'flp'; did you mean 'flap'\? Known: .*flap, .*magnitude, .*wanda_sp"),
        ({"units": ["layers", "ffn"]}, r"layers are pruned alone; give units: \[layers\] and prune widths"),
        (
            {"units": ["sublayers"], "layout": "uniform"},
            "layout is uniform, and stock classes .* give layout: per_layer, or",
        ),
    ],
)
def test_what_the_section_alone_shows(values, says):
    with pytest.raises(ValidationError, match=says):
        config(**values)


def keys(**values):
    job = Job(config(**values))
    return plan.key(job, {}), prune.key(job, {})


def test_a_preset_with_another_repair_makes_both_stages_anew(monkeypatch):
    before = keys(method="flap")
    preset = load_preset("flap").model_copy(update={"repair": "none"})
    monkeypatch.setattr("resprout.tasks.prune.compatibility.load_preset", lambda name: preset)
    plan_key, prune_key = keys(method="flap")
    assert plan_key != before[0], "plan.json names the repair"
    assert prune_key != before[1]
    assert (plan_key, prune_key) == keys(method="flap", repair="none"), "the same choice, spelt out"


def test_settings_of_a_repair_make_the_weights_anew():
    base = {"repair": "least_squares"}
    assert resolve(config(**base)).repair_settings == {"inputs": "dense"}
    changed = keys(**base, repair_settings={"inputs": "pruned"})
    assert changed[1] != keys(**base)[1]
    with pytest.raises(BadInput, match="inputs: 'both'; give one of dense, pruned"):
        resolve(config(**base, repair_settings={"inputs": "both"}))


def test_ridge_makes_the_weights_anew_and_keeps_the_plan():
    before = keys(repair="least_squares")
    plan_key, prune_key = keys(repair="least_squares", ridge=0.5)
    assert plan_key == before[0]
    assert prune_key != before[1]


@pytest.mark.parametrize(
    "values",
    [
        {"method": "wanda_sp"},
        {"units": ["ffn"]},
        {"target": {"params_ratio": 0.8}},
        {"target": {"non_embedding_ratio": 0.9}},
        {"round_to": 64},
        {"layout": "uniform"},
        {"spared_front": 1},
        {"repair": "none"},
    ],
)
def test_all_else_makes_the_plan_anew(values):
    assert keys(**values)[0] != keys()[0]


def test_a_latency_is_that_of_the_machine(monkeypatch):
    timed = {"units": ["ffn"], "allocator": "dynamic_programming", "target": {"latency_ms": 5.0}}
    before = keys(**timed), keys()
    monkeypatch.setattr("resprout.tasks.measure.hardware.fingerprint", lambda: {"cpu": "another"})
    assert keys(**timed)[0] != before[0][0]
    assert keys() == before[1]


def test_stages_name_only_the_modules_that_the_config_selects():
    """The cache key hashes these: an edit to flap.py must not touch scores by wanda_sp."""
    room = "resprout.tasks.prune"
    wanda = config(method="wanda_sp", repair="least_squares")
    assert score.methods(wanda) == [f"{room}.criteria.wanda_sp"]
    assert plan.methods(wanda) == [f"{room}.allocators.uniform"]
    assert prune.methods(wanda) == [f"{room}.repairs.least_squares"]
