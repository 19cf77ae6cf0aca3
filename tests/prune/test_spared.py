"""Layers at the front and at the back that keep their widths, with every allocator of widths."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.interfaces import Bench
from resprout.tasks.prune.latency import LatencyTable
from resprout.tasks.prune.planning import make_plan, plan_from
from resprout.tasks.prune.registry import ALLOCATORS
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape
from tiny_models import tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(6))
QUICK = {
    "evolutionary": {"generations": 12, "children": 6, "survivors": "1,1", "tokens": "16,64"},
    "spdy": {"steps": 2, "calibration_tokens": 64},
}
WIDTHS = [
    entry.name for entry in ALLOCATORS if "ffn" in entry.declared.get("units", ("ffn",))
]  # uniform among them: the same width in all layers that are not spared


def prune(**values):
    base = {"method": "magnitude", "layout": "per_layer", "units": ["ffn"], "round_to": 8}
    return PruneConfig.model_validate(base | {"target": {"non_embedding_ratio": 0.85}} | values)


def ffn(plan):
    return [len(layer.ffn) for layer in plan.layers]


@pytest.mark.parametrize(
    ("method", "layers", "free"),
    [
        # The authors' script prunes layers 4 to 29 of 32: floor(4 / 32 L) up to floor(30 / 32 L).
        ("taylor", 32, range(4, 30)),
        ("taylor", 30, range(3, 28)),
        ("taylor", 12, range(1, 11)),
        # int(0.1 L) layers at the front, and the last.
        ("lora_gradient", 30, range(3, 29)),
        ("lora_gradient", 12, range(1, 11)),
        ("lora_gradient", 5, range(4)),
    ],
)
def test_presets_spare_the_layers_that_their_authors_do(method, layers, free):
    model = tiny_model("llama", num_hidden_layers=layers)
    given = {"method": method, "criterion": "magnitude", "units": ["ffn"], "round_to": 8}
    config = PruneConfig.model_validate(given | {"target": {"non_embedding_ratio": 0.85}})
    plan, _ = make_plan(model, config, IDS)
    assert [index for index, width in enumerate(ffn(plan)) if width < 128] == list(free)
    assert len({ffn(plan)[index] for index in free}) == 1, "one ratio for all layers that are pruned"
    assert plan.layout == "per_layer"


@pytest.mark.parametrize("units", [["ffn"], ["kv_groups"], ["ffn", "kv_groups"]])
@pytest.mark.parametrize("allocator", WIDTHS)
def test_spared_layers_stay_whole_and_leave_the_budget(allocator, units):
    model = tiny_model("llama", num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
    settings = {"allocator": allocator, "allocator_settings": QUICK.get(allocator, {}), "units": units}
    config = prune(spared_front=2, spared_back=1, **settings)
    before = copy.deepcopy(model.state_dict())
    plan, _ = make_plan(model, config, IDS)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    dense = shape_of(model.config.to_dict())
    for index in (0, 1, 5):
        kept = plan.layers[index]
        assert (kept.ffn, kept.kv_groups) == (tuple(range(128)), tuple(range(4)))
    free = plan.layers[2:5]
    assert any(len(one.ffn) < 128 or len(one.kv_groups) < 4 for one in free)
    assert all(one.ffn and one.kv_groups for one in free)
    # As close to the limit as blocks that could come back allow: 8 channels or a group, in all free layers
    # where these are alike.
    steps = {"ffn": 8 * dense.unit_params("ffn"), "kv_groups": dense.unit_params("kv_groups")}
    lacking = [unit for unit in units if any(len(one.kept()[unit]) < dense.counts(unit)[0] for one in free)]
    step = min(steps[unit] for unit in lacking) * (3 if allocator == "uniform" else 1)
    assert 0 <= plan.requested.params - plan.reached.params < step
    assert plan == make_plan(model, config, IDS)[0]
    apply(model, plan)
    assert count(model).params == plan.reached.params


@pytest.mark.parametrize(
    "allocator", ["cfsp_softmax", "adaptive", "zeroth_order", "evolutionary", "spdy", "pq_index"]
)
def test_what_is_measured_of_a_layer_is_that_layer_s(allocator):
    """Of six layers, two spared at the front, the fourth does next to nothing: it keeps the least."""
    model = tiny_model("llama", num_hidden_layers=6)
    layer = model.model.layers[3]
    if allocator == "pq_index":
        for one in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            one.weight[torch.rand(one.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    else:
        layer.mlp.gate_proj.weight.mul_(1e-3)
        layer.mlp.down_proj.weight.mul_(1e-3)
        layer.self_attn.o_proj.weight.mul_(1e-3)
    settings = {"allocator": allocator, "allocator_settings": QUICK.get(allocator, {})}
    scores = [{"ffn": torch.ones(128, 1)} for _ in range(6)]
    config = prune(spared_front=2, spared_back=1, **settings)
    plan = plan_from(scores, shape_of(model.config.to_dict()), "float32", config, Bench(model, IDS))
    kept = ffn(plan)
    assert kept[:2] == [128, 128]
    assert kept[3] < min(kept[2], kept[4])
    assert kept[5] == 128


@pytest.mark.parametrize("units", [["ffn"], ["ffn", "kv_groups"]])
@pytest.mark.parametrize("allocator", WIDTHS)
def test_every_layer_keeps_its_floor(allocator, units):
    """Of scores that fall by three orders of magnitude from layer to layer, with layers spared besides."""
    model = tiny_model("llama", num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4)
    generator = torch.Generator().manual_seed(1)
    scores = [
        {
            "ffn": torch.rand(128, 1, generator=generator) * 10.0 ** (-3 * layer),
            "kv_groups": torch.rand(4, 1, generator=generator) * 10.0 ** (-3 * layer),
        }
        for layer in range(6)
    ]
    dense = shape_of(model.config.to_dict())
    settings = {"allocator": allocator, "allocator_settings": QUICK.get(allocator, {}), "units": units}
    config = prune(spared_front=1, min_kept_ratio=0.6, **settings)
    plan = plan_from(scores, dense, "float32", config, Bench(model, IDS))
    assert ffn(plan)[0] == 128
    assert all(width >= 77 for width in ffn(plan)), "0.6 * 128 = 76.8"
    assert all(len(layer.kv_groups) >= 3 for layer in plan.layers), "0.6 * 4 = 2.4"
    assert plan.reached.params <= plan.requested.params


def test_a_floor_that_does_not_fit_is_one_sentence():
    dense = shape_of(tiny_model("llama", num_hidden_layers=4).config.to_dict())
    with pytest.raises(BadInput, match=r"reaches \d+ .* at best; .*lower min_kept_ratio"):
        implied_shape(dense, prune(min_kept_ratio=0.9))


def test_milliseconds_of_spared_layers_are_not_spent(monkeypatch):
    """A block of 8 channels takes 1 ms, a layer 16 + 8, dense 4 * 24 + 2 = 98: 88.2 leave out 10 blocks."""
    table = LatencyTable({"ffn": {8 * n: float(n) for n in range(1, 17)}, "kv_groups": {1: 4.0, 2: 8.0}}, 2.0)
    monkeypatch.setattr("resprout.tasks.prune.planning.measure", lambda *given: table)
    monkeypatch.setattr("resprout.tasks.prune.planning.measure_models", lambda *given: (98.0, 88.0))
    model = tiny_model("llama", num_hidden_layers=4)
    given = {"allocator": "dynamic_programming", "target": {"latency_ratio": 0.9}}
    plan, _ = make_plan(model, prune(spared_front=1, spared_back=0.25, **given), IDS)
    assert ffn(plan)[0] == ffn(plan)[3] == 128
    assert sum(ffn(plan)) == 4 * 128 - 80
    assert plan.latency.reached == 88.0


def test_a_later_round_spares_them_too():
    model = tiny_model("llama", num_hidden_layers=4)
    draw = torch.Generator().manual_seed(5)
    dense, scores = (
        shape_of(model.config.to_dict()),
        [{"ffn": torch.rand(128, 1, generator=draw)} for _ in range(4)],
    )
    bench, plans = Bench(model, IDS), []
    for ratio in (0.95, 0.85):
        config = prune(spared_front=1, spared_back=1, target={"non_embedding_ratio": ratio})
        plans.append(plan_from(scores, dense, "float32", config, bench, plans[-1] if plans else None))
    first, second = map(ffn, plans)
    assert (first[0], first[3], second[0], second[3]) == (128,) * 4
    assert second[1] < first[1] < 128
    assert set(plans[1].layers[1].ffn) < set(plans[0].layers[1].ffn)


@pytest.mark.parametrize("allocator", ["uniform", "global_standardised"])
def test_streamed_bytes_are_those_of_the_whole_model(allocator, tmp_path):
    write_tiny_folder(tmp_path / "model", dtype="bfloat16", num_hidden_layers=4)
    calibration = write_calibration(tmp_path / "calibration", IDS)
    found = []
    for memory in ("whole", "stream"):
        config = prune(spared_front=1, spared_back=1, allocator=allocator, memory=memory)
        where = through_the_doors(config, tmp_path / "model", calibration, tmp_path / memory)
        found.append((where["pruned"] / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    loaded = load_model(where["pruned"], "bfloat16", "cpu")
    assert [layer.shape.ffn[layer.index] < 128 for layer in anatomy(loaded).layers] == [
        False,
        True,
        True,
        False,
    ]


def test_the_shape_is_known_before_anything_is_scored():
    dense = shape_of(tiny_model("llama", num_hidden_layers=4).config.to_dict())
    config = prune(method="taylor", spared_front=0.25)
    implied = implied_shape(dense, config)
    model = tiny_model("llama", num_hidden_layers=4)
    assert implied.params == make_plan(model, config, IDS)[0].reached.params
    assert (implied.ffn[0], implied.ffn[3], len(set(implied.ffn[1:3]))) == (128, 128, 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": "taylor", "layout": "uniform"},
            "taylor spares .*layout is uniform; give layout: per_layer, or",
        ),
        ({"spared_front": 1, "layout": "uniform"}, "spared_front: 0 and spared_back: 0"),
        (
            {"method": "shortgpt", "units": ["layers"], "spared_back": 1},
            "spares widths, but prune.units names layers",
        ),
        (
            {"method": "shortgpt", "units": ["layers"], "min_kept_ratio": 0.5},
            "a layer's own units, but prune.units names layers",
        ),
        (
            {"method": "minitron_hidden", "units": ["hidden"], "layout": "uniform", "min_kept_ratio": 0.5},
            "a layer's own units, but prune.units names hidden",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(values, says):
    with pytest.raises(BadInput, match=says):
        resolve(prune(**values))
    asked = {"method": "taylor", "layout": "uniform", "spared_front": 0, "spared_back": 0}
    assert resolve(prune(**asked)).method == "taylor (uniform widths)"


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, -0.1, True, "two"])
def test_a_value_that_means_nothing(value):
    with pytest.raises(
        ValueError, match=r"spared_front is .*; give a number of layers, or a share below 1 of"
    ):
        prune(spared_front=value)


def test_a_model_must_have_layers_left():
    dense = shape_of(tiny_model("llama", num_hidden_layers=4).config.to_dict())
    with pytest.raises(BadInput, match=r"spare 3 and 1 of 4 layers, so that none is left; give fewer"):
        implied_shape(dense, prune(spared_front=3, spared_back=0.1))
    with pytest.raises(BadInput, match=r"reaches \d+ .* at best; .*spare fewer layers"):
        implied_shape(dense, prune(spared_front=2, spared_back=1, target={"non_embedding_ratio": 0.7}))
    uneven = replace(dense, ffn=(128, 64, 96, 128))
    with pytest.raises(BadInput, match="allocator 'uniform' gives all layers the same width"):
        implied_shape(uneven, prune(spared_front=1, allocator="uniform"))
