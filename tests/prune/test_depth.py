"""Layers and sublayers: which may go, what their removal gives, and that caches still work afterwards."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import silent
from resprout.tasks.models.ablation import Ablation
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import (
    DepthUnit,
    Shape,
    caches_work,
    count,
    depth_units,
    first_of_each_type,
    shape_of,
    without,
)
from resprout.tasks.prune.allocators.lowest_first import LowestFirst
from resprout.tasks.prune.criteria.block_influence import BlockInfluence
from resprout.tasks.prune.criteria.macro_influence import MacroInfluence
from resprout.tasks.prune.criteria.output_change import DISTANCES, OutputChange
from resprout.tasks.prune.interfaces import Request
from resprout.tasks.prune.planning import make_plan, plan_from
from resprout.tasks.prune.surgery import apply
from tiny_models import column, tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (3, 18), generator=torch.Generator().manual_seed(4))
TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
SLIDING = {"sliding_window": 5, "layer_types": TYPES}
TYPED = {"gemma2": SLIDING, "gemma3_text": SLIDING}


def deep(family):
    return tiny_model(family, num_hidden_layers=4, **TYPED.get(family, {}))


def cut(model, kind, gone):
    """The model after the lowest scores have these rows of [layer, row], by plan and apply."""
    dense = shape_of(model.config.to_dict())
    rows = 1 if kind == "layers" else 2
    scores = [
        {kind: torch.tensor([[-float((layer, row) in gone)] for row in range(rows)])} for layer in range(4)
    ]
    removed = [block for block in depth_units(dense, kind) if (block.layer, block.row) in gone]
    target = {"params": without(dense, removed).params}
    config = PruneConfig.model_validate(
        {"method": "shortgpt", "units": [kind], "layout": "per_layer", "target": target}
    )
    plan = plan_from(scores, dense, "float32", config)
    assert plan.reached.params == target["params"]
    apply(model, plan)
    return model


def greedy(model, ids, tokens):
    for _ in range(tokens):
        logits = model(ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids


SUBLAYERS = {(0, 1), (1, 0), (1, 1), (2, 0), (3, 1)}
SUBLAYERS_TYPED = {(0, 1), (1, 1), (2, 0), (2, 1), (3, 0)}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["layers", "sublayers"])
def test_caches_see_what_a_run_without_one_sees(kind, cache, family):
    """Prompts longer than the window, layer 0 without an FFN, a layer gone, kinds of attention mixed."""
    sublayers = SUBLAYERS_TYPED if family in TYPED else SUBLAYERS
    model = cut(deep(family), kind, {(0, 0), (2, 0)} if kind == "layers" else sublayers)
    made = model.generate(
        IDS,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        cache_implementation=cache,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(made, greedy(model, IDS, 8))


@pytest.mark.parametrize("gone", [{(1, 0), (3, 0)}, {(0, 0), (2, 0)}, {(0, 0)}, {(0, 0), (1, 0), (2, 0)}])
@pytest.mark.parametrize("family_", sorted(TYPED))
def test_kinds_of_attention_move_with_their_layers(family_, gone):
    """The layers that stay compute as they did in their old places, with the windows that they had."""
    model = deep(family_)
    trial = Ablation(model)
    expected = trial.logits(IDS, [DepthUnit(layer, 0, ("attention", "ffn")) for layer, _ in gone])
    pruned = cut(copy.deepcopy(model), "layers", gone)
    kept = [layer for layer in range(4) if (layer, 0) not in gone]
    assert pruned.config.layer_types == [TYPES[layer] for layer in kept]
    built = [layer.self_attn.layer_type for layer in pruned.model.layers]
    assert built == pruned.config.layer_types
    torch.testing.assert_close(pruned(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_first_attention_of_each_kind_stays():
    assert first_of_each_type({}, 4) == {0}
    assert first_of_each_type({"layer_types": ["a", "b", "a", "c"]}, 4) == {0, 1, 3}
    shape = shape_of(deep("gemma2").config.to_dict())
    found = [(block.layer, block.row) for block in depth_units(shape, "sublayers")]
    assert found == [(0, 1), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert [block.sublayers for block in depth_units(shape, "layers")] == [("attention", "ffn")] * 4
    assert caches_work(without(shape, [DepthUnit(0, 0, ("attention", "ffn"))]))
    assert not caches_work(without(shape, [DepthUnit(1, 0, ("attention",))]))
    assert not caches_work(without(shape, list(depth_units(shape, "layers"))))


def test_a_plan_without_that_attention_is_refused():
    model = deep("llama")
    dense = shape_of(model.config.to_dict())
    config = PruneConfig.model_validate(
        {"method": "shortgpt", "units": ["sublayers"], "layout": "per_layer", "target": {"params_ratio": 0.8}}
    )
    scores = [{"sublayers": torch.tensor([[4.0 - layer], [5.0 - layer]])} for layer in range(4)]
    plan = plan_from(scores, dense, "float32", config)
    assert plan.layers[0].ffn
    spoilt = plan.layers[0].model_copy(update={"kv_groups": ()})
    with pytest.raises(BadInput, match="removes the attention of the first layer of its kind"):
        apply(model, plan.model_copy(update={"layers": (spoilt, *plan.layers[1:])}))


def test_stock_code_stops_where_a_sublayer_is_gone(family, tmp_path):
    """It would fill the missing attention at random."""
    from transformers import AutoModelForCausalLM

    model = cut(deep(family), "sublayers", {(2, 0), (3, 1)})
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path, "float32", "cpu")(IDS).logits, model(IDS).logits)


def test_registered_all_folders_load_through_auto_classes(tmp_path):
    """In a child process, so that this one keeps stock classes; stock folders load as before."""
    ids, expected = torch.tensor([[5, 6, 7]]), {}
    for family in FAMILIES:
        for name, model in (
            (f"{family}-stock", deep(family)),
            (f"{family}-cut", cut(deep(family), "sublayers", {(2, 0), (3, 1)})),
        ):
            model.save_pretrained(tmp_path / name)
            expected[name] = model(ids).logits.double().flatten().tolist()
    code = """
    import sys, json, torch
    from transformers import AutoModelForCausalLM
    from resprout.tasks.models.auto import register_layouts
    from resprout.tasks.models.load import load_model
    from pathlib import Path
    register_layouts()
    register_layouts()
    found = {}
    for folder in Path(sys.argv[1]).iterdir():
        model = AutoModelForCausalLM.from_pretrained(folder)
        found[folder.name] = model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
        assert torch.equal(model.lm_head.weight, load_model(folder, "float32", "cpu").lm_head.weight)
        assert model.config.architectures == [type(model).__name__]
    print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


SHAPE = Shape("mistral", 10, 10, 2, (4,) * 3, (2,) * 3, (1,) * 3, config={"tie_word_embeddings": True})
"""Attention 170, FFN 130 with their norms; embeddings and last norm 110: 1010 in all."""


@pytest.mark.parametrize(
    ("limit", "kept"), [(1010, [0, 1, 2]), (1009, [0, 2]), (710, [0, 2]), (709, [2]), (410, [2])]
)
def test_layers_go_from_the_lowest(limit, kept):
    scores = [{"layers": column(value)} for value in (0.5, 0.1, 0.7)]
    granted = LowestFirst().allocate(Request(SHAPE, limit, ("layers",), 1), scores)
    assert [layer for layer in range(3) if granted.ffn[layer]] == kept
    assert granted.ffn == granted.kv_heads[:0] + tuple(4 * (layer in kept) for layer in range(3))
    assert granted.kv_heads == tuple(2 * (layer in kept) for layer in range(3))


def test_of_equal_layers_the_last_goes_first():
    scores = [{"layers": column(0.5)} for _ in range(3)]
    granted = LowestFirst().allocate(Request(SHAPE, 710, ("layers",), 1), scores)
    assert granted.ffn == (4, 4, 0)


def test_sublayers_go_from_the_lowest_and_what_was_not_needed_comes_back():
    """Attention of layer 0 scores lowest but stays. For 130 fewer the FFN of layer 1 (0.2) goes.

    For 150 fewer that does not do: attention of layer 2 (0.3) goes beside it, which alone is enough, so
    that the FFN comes back.
    """
    scores = [
        {"sublayers": column(0.0, 0.9)},
        {"sublayers": column(0.8, 0.2)},
        {"sublayers": column(0.3, 0.7)},
    ]
    granted = LowestFirst().allocate(Request(SHAPE, 880, ("sublayers",), 1), scores)
    assert (granted.kv_heads, granted.ffn) == ((2, 2, 2), (4, 0, 4))
    granted = LowestFirst().allocate(Request(SHAPE, 860, ("sublayers",), 1), scores)
    assert (granted.kv_heads, granted.ffn) == ((2, 2, 0), (4, 4, 4))
    granted = LowestFirst().allocate(Request(SHAPE, 280, ("sublayers",), 1), scores)
    assert (granted.kv_heads, granted.ffn) == ((2, 0, 0), (0, 0, 0))
    assert granted.params == 280


def numpy_turn(before, after):
    x, y = before.double().numpy(), after.double().numpy()
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    return 1 - cosine.mean()


def test_influence_of_layers_equals_numpy_on_the_hidden_states(family):
    model = deep(family)
    hidden = model(IDS, output_hidden_states=True).hidden_states
    scores = BlockInfluence().score_model(model, ("layers",), IDS, silent)
    for layer in range(3):  # behind the last the model gives normed states
        assert scores[layer]["layers"].shape == (1, 1)
        expected = numpy_turn(hidden[layer], hidden[layer + 1])
        np.testing.assert_allclose(scores[layer]["layers"].item(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("parallel", [True, False])
def test_influence_of_sublayers_equals_numpy_on_models_without_them(family, parallel):
    """x + attention is what the layer gives without its FFN."""
    if family != "gpt_neox" and parallel:
        return
    extra = {"use_parallel_residual": parallel} if family == "gpt_neox" else TYPED.get(family, {})
    model = tiny_model(family, num_hidden_layers=4, **extra)
    scores = BlockInfluence().score_model(model, ("sublayers",), IDS, silent)
    trial = Ablation(model)
    stream = trial.inputs(IDS)
    for layer in range(4):
        x, y = stream[layer], stream[layer + 1]
        middle = trial.inputs(IDS, [DepthUnit(layer, 1, ("ffn",))])[layer + 1]
        alone = trial.inputs(IDS, [DepthUnit(layer, 0, ("attention",))])[layer + 1]
        expected = [numpy_turn(x, middle), numpy_turn(x, alone) if parallel else numpy_turn(middle, y)]
        assert expected[0] > 1e-4
        np.testing.assert_allclose(scores[layer]["sublayers"].flatten(), expected, rtol=1e-3, atol=1e-6)


def test_influence_by_hand():
    """A layer whose readers are zero turns nothing."""
    model = deep("llama")
    model.model.layers[2].self_attn.o_proj.weight.zero_()
    model.model.layers[2].mlp.down_proj.weight.zero_()
    scores = BlockInfluence().score_model(model, ("sublayers",), IDS, silent)
    assert scores[2]["sublayers"].abs().max() < 1e-6
    assert min(scores[layer]["sublayers"].min() for layer in (0, 1, 3)) > 1e-4


def test_distances_by_hand():
    """(1, 0) and (0, 2) stand at a right angle: half of pi. Lengths sqrt(5).

    Softmax of (0, ln 3) is 1/4, 3/4; of (ln 3, 0) the reverse: JSD = H(1/2) - H(1/4) in nats.
    """
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(DISTANCES["angular"](a, b), torch.tensor([0.5]))
    torch.testing.assert_close(DISTANCES["l2"](a, b), torch.tensor([5**0.5]))
    expected = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    logits = torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(DISTANCES["jsd"](logits, logits.flip(1)), torch.tensor([expected]))
    assert float(DISTANCES["angular"](torch.ones(1, 999), torch.ones(1, 999) * 3)) < 1e-3


@pytest.mark.parametrize("metric", sorted(DISTANCES))
@pytest.mark.parametrize("kind", ["layers", "sublayers"])
@pytest.mark.parametrize("spared", [0.0, 0.4])
def test_the_order_of_removal_is_that_of_whole_models(kind, metric, spared):
    """Each candidate by itself: a cut model, run from the start on all tokens at once.

    With 0.4 layers 0 and 1 of four are no candidates before floor(0.4 * units) + 1 units are gone.
    """
    model = deep("gemma3_text")
    shape = shape_of(model.config.to_dict())
    left, gone = [(block.layer, block.row) for block in depth_units(shape, kind)], set()
    dense, units = model(IDS).logits, len(left)
    expected = []
    while left:
        changes = {}
        early = [one for one in left if one[0] > 1] if spared and len(gone) <= 0.4 * units else []
        candidates = early or left
        for one in candidates if kind == "sublayers" or len(left) > 1 else ():
            pruned = cut(copy.deepcopy(model), kind, gone | {one})
            changes[one] = DISTANCES[metric](dense, pruned(IDS).logits).sum().item()
        first = min(changes, key=changes.get) if changes else left[0]
        expected.append(first)
        gone.add(first)
        left.remove(first)
    criterion = OutputChange(metric=metric, removed_ratio=1.0, spared_front=spared)
    scores = criterion.score_model(model, (kind,), IDS, silent)
    ranks = {one: scores[one[0]][kind][one[1]].item() for one in expected}
    assert [ranks[one] for one in expected] == list(range(len(expected)))
    protected = [score[kind].max().item() for score in scores]
    assert max(protected) == (len(expected) if kind == "sublayers" else len(expected) - 1)


def test_layers_that_are_spared_to_the_end_rank_behind_the_others():
    scores = OutputChange(removed_ratio=0.25).score_model(deep("llama"), ("layers",), IDS, silent)
    ranks = [score["layers"].item() for score in scores]
    assert ranks[:2] == [3, 2]
    assert sorted(ranks[2:]) == [0, 1]


def test_the_rest_follows_in_the_order_of_the_last_round():
    model = deep("llama")
    dense = model(IDS).logits
    alone = []
    for layer in range(4):
        pruned = cut(copy.deepcopy(model), "layers", {(layer, 0)})
        alone.append(DISTANCES["jsd"](dense, pruned(IDS).logits).sum().item())
    scores = OutputChange(removed_ratio=0.25, spared_front=0.0).score_model(model, ("layers",), IDS, silent)
    ranks = [score["layers"].item() for score in scores]
    assert ranks == np.argsort(np.argsort(alone)).tolist()


def test_trials_leave_the_model_as_it_was():
    model = deep("opt")
    before = model(IDS).logits
    names = [name for name, _ in model.named_modules()]
    OutputChange().score_model(model, ("sublayers",), IDS, silent)
    assert torch.equal(model(IDS).logits, before)
    assert [name for name, _ in model.named_modules()] == names


def test_only_the_first_calibration_tokens_are_looked_at():
    model = deep("llama")
    few = OutputChange(calibration_tokens=18).score_model(model, ("layers",), IDS, silent)
    assert few == OutputChange().score_model(model, ("layers",), IDS[:1], silent)


def test_what_comes_before_the_changed_layer_is_not_run_again():
    """Once uncut, once for the round's stream, then 3, 2, 1 and 0 layers behind the one that is left out."""
    model, ran = deep("llama"), []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    OutputChange(removed_ratio=0.25, spared_front=0.0).score_model(model, ("layers",), IDS, silent)
    assert ran == [*range(4), *range(4), 1, 2, 3, 2, 3, 3]


@pytest.mark.parametrize("kind", ["layers", "sublayers"])
def test_equal_runs_through_the_doors_give_equal_bytes_and_prune_again(kind, tmp_path):
    """Pruned once more, too: what the first run made."""
    write_tiny_folder(tmp_path / "dense", "gemma3_text", dtype="bfloat16", num_hidden_layers=4, **SLIDING)
    calibration = write_calibration(tmp_path / "calibration", IDS)
    layout = "uniform" if kind == "layers" else "per_layer"
    values = {
        "method": "shortgpt",
        "units": [kind],
        "layout": layout,
        "target": {"non_embedding_ratio": 0.75},
    }
    config = PruneConfig.model_validate(values)

    def run(model, name):
        through_the_doors(config, tmp_path / model, calibration, tmp_path / name)
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    assert run("dense", "first") == run("dense", "second")
    again = run("first/pruned", "again")
    sizes = [shape_of(tmp_path / name).params for name in ("dense", "first/pruned", "again/pruned")]
    assert sizes == sorted(set(sizes), reverse=True)
    assert json.loads(again["plan.json"])["reached"]["params"] == sizes[2]
    model = load_model(tmp_path / "again/pruned", "bfloat16", "cpu")
    made = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape == (3, 22)


@pytest.mark.parametrize(("gone", "unit"), [((2, 0), "kv_groups"), ((2, 0), "heads"), ((3, 1), "ffn")])
def test_widths_are_refused_where_their_sublayer_is_gone(gone, unit):
    model = cut(deep("llama"), "sublayers", {gone})
    values = {"method": "magnitude", "layout": "per_layer", "target": {"params_ratio": 0.9}, "round_to": 8}
    config = PruneConfig.model_validate({**values, "units": [unit]})
    with pytest.raises(BadInput, match=f"names {unit}, but layer {gone[0]} of the model has lost"):
        make_plan(model, config, IDS)
    other = PruneConfig.model_validate({**values, "units": ["ffn" if gone[1] == 0 else "kv_groups"]})
    plan, _ = make_plan(model, other, IDS)
    apply(model, plan)
    assert count(model).params == plan.reached.params


@pytest.mark.parametrize("kind", ["layers", "sublayers"])
def test_macro_influence_is_that_of_whole_models(kind):
    """Each candidate by itself: the last hidden states, in front of the norm, of a cut model."""
    model = deep("llama")
    left = [(block.layer, block.row) for block in depth_units(shape_of(model.config.to_dict()), kind)]
    gone = set()
    dense = last_states(model)
    expected = []
    for _ in range(2):
        turns = {}
        for one in left:
            cut_one = last_states(cut(copy.deepcopy(model), kind, gone | {one}))
            turns[one] = 1 - np.mean(np.sum(dense * cut_one, -1) / (norms(dense) * norms(cut_one)))
        expected = sorted(left, key=turns.get)
        gone.add(expected[0])
        left.remove(expected[0])
    order = [*sorted(gone - {expected[0]}), *expected]
    ratio = 2 / len(order)
    scores = MacroInfluence(removed_ratio=ratio).score_model(model, (kind,), IDS, silent)
    assert [scores[layer][kind][row].item() for layer, row in order] == list(range(len(order)))


def last_states(model):
    seen = []
    model.model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].double().numpy()))
    model(IDS)
    return seen[0]


def norms(states):
    return np.sqrt(np.square(states).sum(-1))
