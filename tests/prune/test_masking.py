"""Masked, shrunk, regrown and gone units: against the cut model, planted gradients, and by hand."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, RecoverConfig, TargetConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.criteria.gradient import Gradient
from resprout.tasks.prune.interfaces import Bench
from resprout.tasks.prune.mask_and_regrow import Masking, Regrowth
from resprout.tasks.prune.mask_and_regrow import mask as mask_stage
from resprout.tasks.prune.mask_and_regrow import regrow as regrow_stage
from resprout.tasks.prune.masking import MASKED, mask, read_masked
from resprout.tasks.prune.plan import read_plan, write_plan
from resprout.tasks.prune.planning import make_plan, plan_from, regrow_units
from resprout.tasks.prune.registry import SCHEDULES
from resprout.tasks.prune.rounds import target_at
from resprout.tasks.prune.scoring import as_tensors, score_units
from resprout.tasks.prune.stage import plan as plan_stage
from resprout.tasks.prune.stage import prune as prune_stage
from resprout.tasks.prune.stage import score as score_stage
from resprout.tasks.prune.surgery import apply
from resprout.tasks.recover.masked import hold_masked, leave_masked
from resprout.tasks.recover.methods.lora import merge, with_adapters
from tiny_models import half_of, layout_for, read_units, tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (4, 14), generator=torch.Generator().manual_seed(6))
MASKABLE = SCHEDULES.entry("cubic").declared["units"]
DEPTH_METHOD = {"layers": "shortgpt", "sublayers": "shortgpt"}
CASES = [
    pytest.param(family, units, id=f"{family}-{'+'.join(units)}")
    for family in FAMILIES
    for units in [*((unit,) for unit in MASKABLE), ("ffn", "kv_groups"), ("kv_groups", "heads")]
    if set(units) <= set(read_units(family))
]


def deep(family):
    return tiny_model(family, num_hidden_layers=4)


def config_of(units, ratio=0.7, target=None, **values):
    depth = units[0] in ("layers", "sublayers")
    base = {
        "method": DEPTH_METHOD.get(units[0], "wanda_sp"),
        "units": units,
        "layout": "per_layer" if units == ("sublayers",) else "uniform",
        "round_to": 8,
        "target": {"non_embedding_ratio": 0.55 if depth else ratio},
    }
    if target is not None:
        base["target"] = target
    return PruneConfig.model_validate(base | values)


def reader_columns(model, kind, layer):
    """What reads each unit, [units, values], by the anatomy."""
    units = anatomy(model).layers[layer].units(kind)
    return units.weight.T.reshape(units.count, -1)


@pytest.mark.parametrize(("family", "units"), CASES)
def test_a_masked_model_computes_what_the_cut_one_does(family, units):
    model = deep(family)
    layout = {} if units == ("sublayers",) else layout_for(family, units)
    plan, _ = make_plan(model, config_of(units, target=half_of(units[0], model), **layout), IDS)
    assert plan.reached.params < plan.dense.params
    cut, dense = copy.deepcopy(model), model(IDS).logits
    apply(cut, plan)
    before = {name: one.clone() for name, one in model.named_parameters()}
    columns = mask(model, plan)
    torch.testing.assert_close(model(IDS).logits, cut(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(IDS).logits, dense, atol=1e-3)
    assert shape_of(model.config.to_dict()).params == plan.dense.params
    changed = {name for name, one in model.named_parameters() if not torch.equal(one.detach(), before[name])}
    assert changed == set(columns)
    for name, masked in columns.items():
        weight = model.get_parameter(name)
        if masked is None:
            assert not weight.any()
            continue
        dim, inputs = masked
        zero = (weight.movedim(dim, 0).flatten(1) == 0).all(dim=1)
        assert zero.nonzero().flatten().tolist() == inputs, "all that is zero is told, and nothing else"


def test_a_mask_twice_is_a_mask_once():
    model = deep("llama")
    plan, _ = make_plan(model, config_of(("ffn",)), IDS)
    columns = mask(model, plan)
    once = {name: one.clone() for name, one in model.named_parameters()}
    assert mask(model, plan) == columns
    assert all(torch.equal(one, once[name]) for name, one in model.named_parameters())


@pytest.mark.parametrize(("family", "units"), [("llama", "ffn"), ("gpt2", "ffn"), ("llama", "layers")])
def test_shrinking_keeps_a_share_and_masks_nothing(family, units):
    """Columns outside the plan are a quarter of what they were; after another round a sixteenth."""
    model = deep(family)
    plan, _ = make_plan(model, config_of((units,)), IDS)
    stays = plan.by_source()
    before = [reader_columns(model, "ffn", layer).clone() for layer in range(4)]
    for factor in (0.25, 0.0625):
        assert mask(model, plan, keep=0.25) == {}
        for layer in range(4):
            kept = list(stays[layer].ffn) if layer in stays else []
            gone = [unit for unit in range(128) if unit not in kept]
            now = reader_columns(model, "ffn", layer)
            assert torch.equal(now[kept], before[layer][kept])
            assert torch.equal(now[gone], before[layer][gone] * factor)
            assert units == "layers" or gone


def test_a_plan_for_another_model_is_refused():
    plan, _ = make_plan(deep("llama"), config_of(("ffn",)), IDS)
    with pytest.raises(BadInput, match="made for a llama model of 4 layers"):
        mask(tiny_model("llama"), plan)


def random_scores(model, units, seed):
    draw = torch.Generator().manual_seed(seed)
    return [
        {kind: torch.rand(layer.part(kind).units, 1, generator=draw) for kind in units}
        for layer in anatomy(model).layers
    ]


def kept_of(plan, kind):
    return [set(layer.kept()[kind]) for layer in plan.layers]


QUICK = {"generations": 2, "children": 3, "survivors": "1,1", "tokens": "28,112"}
SPDY = {"steps": 2, "calibration_tokens": 28}


@pytest.mark.parametrize(
    ("units", "allocator", "settings"),
    [
        *((units, "uniform", {}) for units in (("ffn",), ("kv_groups",), ("heads",), ("ffn", "kv_groups"))),
        (("kv_groups", "heads"), "uniform", {}),
        *((units, "global_standardised", {}) for units in (("heads",), ("ffn", "kv_groups"))),
        *((units, "dynamic_programming", {}) for units in (("heads",), ("ffn", "kv_groups"))),
        (("ffn", "kv_groups"), "evolutionary", QUICK),
        *((units, "spdy", SPDY) for units in (("heads",), ("ffn", "kv_groups"))),
        (("ffn",), "pq_index", {}),
    ],
)
def test_gone_stays_gone_whatever_it_scores(units, allocator, settings):
    """Scores are drawn anew each round, so that without the plan before others would go."""
    layout = "uniform" if allocator == "uniform" else "per_layer"
    model = tiny_model("llama", num_key_value_heads=4, num_attention_heads=16)
    dense = shape_of(model.config.to_dict())
    before, smaller, others = None, False, False
    for seed, ratio in enumerate((0.92, 0.8, 0.68)):
        config = config_of(units, ratio, layout=layout, allocator=allocator, allocator_settings=settings)
        scores = random_scores(model, units, seed)
        bench = Bench(model, IDS)
        plan = plan_from(scores, dense, "float32", config, bench, before)
        alone = plan_from(scores, dense, "float32", config, bench)
        # Left over are fewer than a KV group or two query heads of each group in both layers.
        assert 0 <= plan.requested.params - plan.reached.params < 2 * 16384
        assert plan.reached == alone.reached or allocator != "uniform" or len(units) > 1
        for kind in units if before else ():
            left = (kept_of(one, kind) for one in (before, plan, alone))
            for old, new, other in zip(*left, strict=True):
                assert new <= old
                smaller |= new < old
                others |= not other <= old
        before = plan
    assert smaller
    assert others


def test_ranks_of_those_that_stay_are_by_their_scores():
    """Units 2 and 5 are gone though they score highest; of the others the best stay."""
    model = tiny_model("llama")
    dense = shape_of(model.config.to_dict())
    scores = [{"ffn": torch.arange(128.0).unsqueeze(1)} for _ in range(2)]
    config = config_of(("ffn",), 0.9)
    first = plan_from(scores, dense, "float32", config)
    keep = tuple(sorted(set(range(128)) - {2, 120}))[-len(first.layers[0].ffn) - 8 :]
    before = first.model_copy(
        update={"layers": tuple(layer.model_copy(update={"ffn": keep}) for layer in first.layers)}
    )
    plan = plan_from(scores, dense, "float32", config, before=before)
    assert plan.layers[0].ffn == keep[-len(first.layers[0].ffn) :]
    zero = [{"ffn": torch.zeros(128, 1)} for _ in range(2)]
    even = plan_from(zero, dense, "float32", config, before=before)
    assert set(even.layers[0].ffn) <= set(keep), "units that score alike are told apart too"


@pytest.mark.parametrize("units", [("layers",), ("sublayers",)])
def test_depth_that_is_gone_stays_gone(units):
    model = tiny_model("llama", num_hidden_layers=6)
    dense = shape_of(model.config.to_dict())
    rows = 1 if units == ("layers",) else 2

    def plan_at(ratio, seed, before=None):
        draw = torch.Generator().manual_seed(seed)
        scores = [{units[0]: torch.rand(rows, 1, generator=draw)} for _ in range(6)]
        config = config_of(units, target={"non_embedding_ratio": ratio})
        return plan_from(scores, dense, "float32", config, before=before)

    def there(plan):
        return {
            (source, kind)
            for source, layer in plan.by_source().items()
            for kind, kept in layer.kept().items()
            if kept
        }

    moved = 0
    for seed in range(6):
        first = plan_at(0.8, seed)
        second = plan_at(0.5, seed + 50, first)
        assert there(second) < there(first)
        assert second.reached.non_embedding_params <= 0.5 * dense.non_embedding_params
        moved += not there(plan_at(0.5, seed + 50)) <= there(first)
        mask(copy.deepcopy(model), second)
    assert moved


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_is_that_of_autograd(family):
    model = tiny_model(family)
    scores = score_units(model, Gradient(), ("ffn",), IDS)
    readers = [layer.reader("ffn").weight for layer in anatomy(model).layers]
    for one in readers:
        one.requires_grad_(True)
    model(IDS, labels=IDS).loss.backward()
    for layer, one in zip(scores, readers, strict=True):
        columns = one.grad if family == "gpt2" else one.grad.T
        torch.testing.assert_close(layer["ffn"].squeeze(1), columns.norm(dim=1), rtol=1e-4, atol=1e-7)


def test_units_of_zero_columns_still_have_a_gradient():
    model = tiny_model("llama")
    plan, _ = make_plan(model, config_of(("ffn",)), IDS)
    mask(model, plan)
    gone = sorted(set(range(128)) - set(plan.layers[0].ffn))
    assert score_units(model, Gradient(), ("ffn",), IDS)[0]["ffn"][gone].min() > 0


def test_regrowth_by_hand():
    """Of 8 kept, ceil(0.3 * 8) = 3 go, the lowest: 0, 1, 2; planted gradients bring 100, 50 and 1 back."""
    model = tiny_model("llama")
    plan, _ = make_plan(model, config_of(("ffn",), round_to=1), IDS)
    layers = tuple(layer.model_copy(update={"ffn": tuple(range(8))}) for layer in plan.layers)
    plan = plan.model_copy(update={"layers": layers})
    scores = [{"ffn": torch.arange(128.0).unsqueeze(1)} for _ in layers]
    growth = [{"ffn": torch.zeros(128, 1)} for _ in layers]
    for place, gradient in ((100, 3.0), (50, 2.0), (1, 1.0), (7, 9.0)):
        growth[0]["ffn"][place] = gradient
    found = regrow_units(plan, scores, growth, 0.3)
    assert found.layers[0].ffn == (1, 3, 4, 5, 6, 7, 50, 100)
    assert found.layers[1].ffn == tuple(range(8)), "of equal gradients the lowest come back"
    assert regrow_units(plan, scores, growth, 0.0) == plan
    assert regrow_units(plan, scores, growth, 1.0).layers[0].ffn[-2:] == (50, 100)
    assert 7 in regrow_units(plan, scores, growth, 1.0).layers[0].ffn, "one stays"


def test_query_heads_regrow_inside_their_group():
    model = tiny_model("llama", num_attention_heads=8, num_key_value_heads=2)
    plan, scores = make_plan(model, config_of(("heads",), 0.9), IDS)
    growth = [{"heads": torch.rand(8, 1, generator=torch.Generator().manual_seed(1))} for _ in plan.layers]
    for old, new in zip(plan.layers, regrow_units(plan, scores, growth, 0.5).layers, strict=True):
        assert new.heads != old.heads
        for group in (range(4), range(4, 8)):
            assert sum(head in group for head in new.heads) == sum(head in group for head in old.heads)


def test_the_doors_of_a_round(tmp_path):
    folder = write_tiny_folder(tmp_path / "model")
    model = load_model(folder, "float32", "cpu")
    plan, scores = make_plan(model, config_of(("ffn",)), IDS)
    (tmp_path / "plan").mkdir()
    write_plan(plan, tmp_path / "plan")
    given = {"plan": tmp_path / "plan", "model": folder}
    growth = score_units(model, Gradient(), ("ffn",), IDS)
    for role, tensors in (("scores", scores), ("growth", growth)):
        (tmp_path / role).mkdir()
        save_file(dict(as_tensors(tensors)), tmp_path / role / "scores.safetensors")
        given[role] = tmp_path / role
    (tmp_path / "regrown").mkdir()
    regrow_stage.body(Job(Regrowth(("ffn",), 0.25)), given, tmp_path / "regrown", silent)
    other = read_plan(tmp_path / "regrown")
    assert other == regrow_units(plan, scores, growth, 0.25)
    metrics = json.loads((tmp_path / "regrown" / "metrics.json").read_text())
    fresh = [set(new.ffn) - set(old.ffn) for old, new in zip(plan.layers, other.layers, strict=True)]
    assert metrics["regrown_units"] == sum(map(len, fresh)) > 0
    assert metrics["reached_params"] == plan.reached.params
    for keep, name in ((0.0, "masked"), (0.5, "shrunk")):
        (tmp_path / name).mkdir()
        job = Job(Masking(keep), dtype="float32")
        mask_stage.body(job, {**given, "plan": tmp_path / "regrown"}, tmp_path / name, silent)
    columns = mask(model, other)
    assert read_masked(tmp_path / "masked") == columns
    assert torch.equal(load_model(tmp_path / "masked", "float32", "cpu")(IDS).logits, model(IDS).logits)
    assert not (tmp_path / "shrunk" / MASKED).exists()
    assert (tmp_path / "masked" / "tokenizer.json").exists()


@pytest.mark.parametrize("units", [("ffn",), ("kv_groups",), ("layers",)])
def test_adapters_of_every_family_leave_the_masked_model_masked(family, units):
    """Whatever they learn, the merged model still computes what it does without the units that are gone."""
    if units[0] not in read_units(family):
        pytest.skip(f"a {family} model cannot lose {units[0]} in rounds")
    model = deep(family)
    config = config_of(units, target=half_of(units[0], model), **layout_for(family, units))
    plan, _ = make_plan(model, config, IDS)
    columns = mask(model, plan)
    adapted = with_adapters(model, RecoverConfig(rank=2))
    leave_masked(adapted, columns)
    draw = torch.Generator().manual_seed(7)
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            one.data.copy_(torch.rand(one.shape, generator=draw) * 0.1)
    merged = merge(adapted)
    expected = merged(IDS).logits
    assert mask(merged, plan) == columns
    assert torch.equal(merged(IDS).logits, expected)
    for name, masked in columns.items():
        weight = merged.get_parameter(name)
        dim, inputs = masked or (0, range(len(weight)))
        assert not weight.index_select(dim, torch.tensor(inputs)).any()
        assert len(inputs) == weight.shape[dim] or weight.any()
    apply(merged, plan)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_training_of_all_weights_leaves_the_masked_model_masked(family):
    """Biases of sublayers that are gone, and what reads experts, have no gradient either."""
    model = deep(family)
    plan, _ = make_plan(model, config_of(("layers",), target=half_of("layers", model)), IDS)
    columns = mask(model, plan)
    model.requires_grad_()
    hold_masked(model, columns)
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, masked in columns.items():
        gradient = model.get_parameter(name).grad
        dim, inputs = masked or (0, range(len(gradient)))
        assert not gradient.index_select(dim, torch.tensor(inputs)).any()
    assert any(one.grad is not None and one.grad.any() for one in model.parameters())


@pytest.mark.parametrize(
    "units", [("ffn",), ("kv_groups",), ("heads",), ("ffn", "kv_groups"), ("layers",), ("sublayers",)]
)
def test_rounds_through_the_doors(units, tmp_path):
    """Two masked rounds and a cut: each plan is within the one before, and the cut computes what masks do."""
    shape = {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    inputs = {"model": write_tiny_folder(tmp_path / "dense", **shape)}
    (tmp_path / "calibration").mkdir()
    save_file({"input_ids": IDS}, tmp_path / "calibration" / "calibration.safetensors")
    inputs["calibration"] = tmp_path / "calibration"
    dense = shape_of(inputs["model"])
    target = TargetConfig(**half_of(units[0], load_model(inputs["model"], "float32", "cpu")))
    made = []

    def step(stage, config, **more):
        folder = tmp_path / f"{stage.name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        stage.body(Job(config, dtype="float32"), {**inputs, **more}, folder, silent)
        return folder

    for done in (0.5, 0.875, 1.0):
        section = config_of(units, repair="none", target=target_at(target, done, dense, "float32"))
        before = {"before": made[-1]} if made else {}
        scores = step(score_stage, section)
        made.append(step(plan_stage, section, scores=scores, **before))
        expected = step(mask_stage, Masking(), plan=made[-1])
        if done == 1.0:
            pruned = step(prune_stage, section, plan=made[-1])
        inputs["model"] = expected
    cut, masked = (load_model(folder, "float32", "cpu") for folder in (pruned, expected))
    torch.testing.assert_close(cut(IDS).logits, masked(IDS).logits, rtol=1e-4, atol=1e-5)
    plans = [read_plan(folder) for folder in made]
    sizes = [plan.reached.params for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= target.params
    # A family whose heads divide the hidden size has no three of four groups.
    assert sizes[0] > sizes[-1] or {"kv_groups", "heads"} & set(units)
    for earlier, later in itertools.pairwise(plans):
        old, new = earlier.by_source(), later.by_source()
        assert set(new) <= set(old)
        assert all(
            set(kept) <= set(old[source].kept()[kind])
            for source, layer in new.items()
            for kind, kept in layer.kept().items()
        )
