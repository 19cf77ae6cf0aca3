"""Evolutionary search: of widths and of layers, against brute force; candidates are the cut model."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import combinations, product
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.shape import Shape, depth_units, shape_of, without
from resprout.tasks.prune.allocators.evolutionary import Evolutionary, _Widths
from resprout.tasks.prune.allocators.evolutionary_depth import EvolutionaryDepth, removed_counts
from resprout.tasks.prune.budget import sizes_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.criteria.magnitude import Magnitude
from resprout.tasks.prune.interfaces import Bench, Request
from resprout.tasks.prune.planning import make_plan, plan_from
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.search import Comparison, Divergence, evolve, parse_stages
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(6))
SHAPE = Shape("mistral", 10, 10, 2, (8,) * 4, (2,) * 4, (1,) * 4, config={"tie_word_embeddings": True})
"""Of each layer the FFN holds 240 parameters and a norm of 10, attention 160 and a norm of 10."""


def prune(units, target, method="evopress", **settings):
    values = {"layout": "per_layer", "round_to": 8, "target": target, "allocator_settings": settings}
    return PruneConfig.model_validate({"method": method, "units": units, **values})


@pytest.mark.parametrize(
    ("method", "allocator", "instead"),
    [
        ("evopress", "lowest_first", "finercut or fusegpt or random or shortgpt"),
        ("shortgpt", "evolutionary_depth", "evopress or"),
    ],
)
def test_what_chooses_layers_is_what_a_method_of_depth_is(method, allocator, instead):
    """The search looks at no scores, and an order of random scores is none of its."""
    with pytest.raises(
        BadInput, match=f"is not how prune.method {method} chooses layers; .* method: {instead}"
    ):
        resolve(prune(["layers"], {"params_ratio": 0.8}, method).model_copy(update={"allocator": allocator}))


def test_as_many_of_each_kind_go_by_hand():
    """The attention of layer 0 stays: 3 of attention (170 each), 4 of FFN (250 each).

    420 go by one of each, 250 by an FFN alone, 590 by two FFNs and an attention or 840 by two of each.
    """
    places = list(depth_units(SHAPE, "sublayers"))

    def counts(gone):
        request = Request(SHAPE, SHAPE.params - gone, ("sublayers",), 1, uniform=False)
        return removed_counts(request, places)

    assert counts(420) == {0: 1, 1: 1}
    assert counts(250) == {0: 0, 1: 1}
    assert counts(170) == {0: 1, 1: 0}
    assert counts(421) == {0: 2, 1: 1}
    assert counts(591) == {0: 1, 1: 2}
    assert counts(671) == {0: 2, 1: 2}
    assert counts(1500) == {0: 3, 1: 4}
    whole = Request(SHAPE, SHAPE.params - 421, ("layers",), 1)
    assert removed_counts(whole, list(depth_units(SHAPE, "layers"))) == {0: 2}


def divergence(model, gone):
    """KL(dense || without these) in nats a token, layers left out by hand."""
    dense = model(IDS).logits.log_softmax(dim=-1)
    kept = [layer for index, layer in enumerate(model.model.layers) if index not in gone]
    whole, model.model.layers = model.model.layers, torch.nn.ModuleList(kept)
    cut = model(IDS, use_cache=False).logits.log_softmax(dim=-1)
    model.model.layers = whole
    return (dense.exp() * (dense - cut)).sum().item() / IDS.numel()


def test_the_search_finds_what_brute_force_does():
    """Two of six layers: fifteen choices."""
    model = tiny_model("llama", num_hidden_layers=6)
    for index, size in enumerate((1.0, 0.7, 0.3, 0.9, 0.2, 0.6)):
        model.model.layers[index].mlp.down_proj.weight.mul_(size)
        model.model.layers[index].self_attn.o_proj.weight.mul_(size)
    best = min(combinations(range(6), 2), key=lambda gone: divergence(model, gone))
    shape = shape_of(model.config.to_dict())
    request = Request(shape, shape.with_layers(range(4)).params, ("layers",), 1)
    search = EvolutionaryDepth(generations=12, children=4, survivors="1", tokens="64", initial=2)
    granted = search.allocate(request, [], Bench(model, IDS))
    assert tuple(index for index, width in enumerate(granted.ffn) if not width) == best
    assert granted == search.allocate(request, [], Bench(model, IDS)), "the same seed, the same search"
    auto = []
    bench = Bench(model, IDS, progress=lambda *args: auto.append(args))
    EvolutionaryDepth(children=2, survivors="1", tokens="16", initial=2).allocate(request, [], bench)
    assert len(auto) == 5, "k (n - k) / 1.5 = 2 * 4 / 1.5 = 5.33"


def test_attention_and_ffn_go_independently():
    """Of a model whose second FFN and third attention do nothing these two go."""
    model = tiny_model("llama", num_hidden_layers=4)
    model.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    model.model.layers[2].self_attn.o_proj.weight.mul_(1e-3)
    shape = shape_of(model.config.to_dict())
    gone = [one for one in depth_units(shape, "sublayers") if (one.layer, one.row) in ((1, 1), (2, 0))]
    target = {"params": without(shape, gone).params}
    settings = {"children": 8, "survivors": "1", "tokens": "64", "initial": 4}
    plan, _ = make_plan(model, prune(["sublayers"], target, **settings), IDS)
    assert [bool(layer.ffn) for layer in plan.layers] == [True, False, True, True]
    assert [bool(layer.kv_groups) for layer in plan.layers] == [True, True, False, True]
    assert plan.allocator_settings["children"] == 8, "the budget stands beside what it found"
    assert plan.reached.params == target["params"]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3"])
def test_a_kind_of_attention_keeps_its_first_layer(family):
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    types = {"layer_types": kinds} if family.startswith("gemma") else {}
    model = tiny_model(family, num_hidden_layers=4, **types)
    settings = {"children": 2, "survivors": "1", "tokens": "64", "initial": 2, "generations": 2}
    plan, _ = make_plan(model, prune(["sublayers"], {"non_embedding_ratio": 0.5}, **settings), IDS)
    first = (0, 1) if types else (0,)
    assert all(plan.by_source()[layer].kv_groups for layer in first)
    assert plan.reached.params <= plan.requested.params


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        (Evolutionary, {"children": 0}, "'evolutionary' has children: 0; give at least 1"),
        (Evolutionary, {"survivors": "4,1"}, "survivors: '4,1' and tokens: '2048,16384,65536'; give as many"),
        (Evolutionary, {"survivors": "4,1,2"}, "the last survivor 1"),
        (EvolutionaryDepth, {"tokens": "512,-1"}, "'evolutionary_depth' has survivors: '2,1' and tokens"),
        (EvolutionaryDepth, {"initial": 0}, "'evolutionary_depth' has initial: 0; give at least 1"),
    ],
)
def test_settings_out_of_bounds(method, settings, says):
    with pytest.raises(BadInput, match=says):
        method(**settings)


def quiet(*_):
    pass


def test_stages():
    assert parse_stages("search", "4, 1,1", "512,2048,8192") == [
        Comparison(4, 512),
        Comparison(1, 2048),
        Comparison(1, 8192),
    ]


def test_the_search_finds_the_optimum_of_a_separable_toy():
    """Five places of four levels each, two kinds of cost that cannot switch: brute force over all of them."""
    generator = np.random.default_rng(3)
    losses = -np.sort(-generator.random((5, 5)), axis=1)  # more levels, less loss
    costs = [[7] * 4, [7] * 4, [7] * 4, [5] * 4, [5] * 4]
    start = (2, 2, 2, 2, 2)
    loss = lambda one: float(sum(losses[place, level] for place, level in enumerate(one)))  # noqa: E731
    best = min(
        (one for one in product(range(1, 5), repeat=5) if sum(one[:3]) == 6 and sum(one[3:]) == 4),
        key=loss,
    )
    assert best != start
    seen = Counter()

    def fitness(candidates, tokens):
        seen[tokens] += len(candidates)
        for one in candidates:
            assert (sum(one[:3]), sum(one[3:])) == (6, 4)
            assert all(1 <= level <= 4 for level in one)
        return [loss(one) for one in candidates]

    plan = [Comparison(2, 10), Comparison(1, 40)]
    found = evolve(start, costs, [1] * 5, fitness, plan, 30, 8, Random(1), quiet)
    assert found == best
    assert seen[10] > 2 * seen[40] > 0


def test_a_search_without_a_switch_ends_where_it_began():
    def never(candidates, tokens):
        raise AssertionError

    plan = [Comparison(1, 10), Comparison(1, 40)]
    assert evolve((2, 1), [[7] * 2, [5] * 2], [1, 1], never, plan, 3, 4, Random(1), quiet) == (2, 1)


@pytest.mark.parametrize("kinds", [("ffn",), ("kv_groups",), ("ffn", "kv_groups"), ("heads",)])
def test_a_masked_candidate_is_the_cut_model(kinds):
    model = tiny_model("qwen2", num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
    scores = score_units(model, Magnitude(), kinds, IDS)
    shape = shape_of(model.config.to_dict())
    request = Request(shape, shape.params, kinds, 32, uniform=False)
    places = [(kind, layer) for kind in kinds for layer in range(3)]
    sizes = [sizes_of(request, layer, kind) for kind, layer in places]
    widths = _Widths(Bench(model, IDS), scores, places, sizes)
    divergence = Divergence(widths.probe.ablation, IDS, widths.logits, Random(5))
    levels = {"ffn": (1, 2, 4), "kv_groups": (2, 4, 1), "heads": (1, 2, 2)}
    candidate = tuple(levels[kind][layer] for kind, layer in places)
    granted = shape
    for kind in kinds:
        each = 32 if kind == "ffn" else 1
        granted = granted.with_counts(kind, (level * each for level in levels[kind]))
    with widths.probe.narrowed(widths.counts(candidate)):
        masked = model(IDS).logits
    dense = model(IDS).logits.log_softmax(dim=-1)

    class Fixed:
        def allocate(self, request, scores, bench=None):
            return granted

    config = PruneConfig.model_validate(
        {
            "method": "magnitude", "units": kinds, "layout": "per_layer", "round_to": 32,
            "target": {"params": granted.params},
        }
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resprout.tasks.prune.planning.ALLOCATORS.get", lambda name: lambda **_: Fixed())
        plan = plan_from(scores, shape, "float32", config)
    pruned = copy.deepcopy(model)
    apply(pruned, plan)
    cut = pruned(IDS).logits
    torch.testing.assert_close(masked, cut, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut, model(IDS).logits, atol=1e-3)
    expected = kl_div(cut.log_softmax(dim=-1), dense, log_target=True, reduction="sum") / IDS.numel()
    assert divergence.of([candidate], 64)[0] == pytest.approx(expected.item(), rel=1e-3)


def test_the_search_comes_closer_to_the_uncut_model():
    """A layer whose FFN does nothing: the equal start spends on it, the search does not."""
    model = tiny_model("llama", num_hidden_layers=4)
    model.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    shape = shape_of(model.config.to_dict())
    request = Request(shape, shape.params - 2 * 128 * shape.unit_params("ffn"), ("ffn",), 32, uniform=False)
    scores = score_units(model, Magnitude(), ("ffn",), IDS)
    search = Evolutionary(generations=12, children=6, survivors="1,1", tokens="16,64")
    granted = search.allocate(request, scores, Bench(model, IDS))
    assert sum(granted.ffn) == 2 * 128
    assert granted.ffn[1] == 32
    assert granted == search.allocate(request, scores, Bench(model, IDS))


def test_it_says_how_far_it_is():
    seen = []
    model = tiny_model("llama", num_hidden_layers=4)
    shape = shape_of(model.config.to_dict())
    request = Request(shape, int(shape.params * 0.9), ("ffn",), 16, uniform=False)
    bench = Bench(model, IDS, progress=lambda *args: seen.append(args))
    Evolutionary(generations=2, children=2, survivors="1", tokens="512").allocate(
        request, score_units(model, Magnitude(), ("ffn",), IDS), bench
    )
    assert seen == [(1, 2, "generations"), (2, 2, "generations")]
