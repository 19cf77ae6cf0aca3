"""EvoPress's depth pruning: how many go, which by brute force, and the search budget that results carry."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.depth import blocks, without
from resprout.tasks.models.size import Shape, shape_of
from resprout.tasks.prune.allocators.evolutionary_depth import EvolutionaryDepth, removed_counts
from resprout.tasks.prune.contracts import Bench, Request
from resprout.tasks.prune.make_plan import make_plan
from resprout.tasks.prune.resolve import resolve
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(6))
SHAPE = Shape("mistral", 10, 10, 2, (8,) * 4, (2,) * 4, (1,) * 4, config={"tie_word_embeddings": True})
"""Of each layer the FFN holds 240 parameters and a norm of 10, attention 160 and a norm of 10."""


def prune(units, target, method="evopress", **settings):
    values = {"layout": "per_layer", "round_to": 8, "target": target, "allocator_settings": settings}
    return PruneConfig.model_validate({"method": method, "units": units, **values})


def test_the_paper_s_search_and_its_budget():
    """scripts/run_drop_search.sh and run_prune_search.sh of IST-DASLab/EvoPress at 50888a0."""
    widths = resolve(prune(["ffn"], {"params_ratio": 0.8}))
    assert widths.allocator_settings["generations"] == 400
    assert widths.allocator_settings["children"] == 64
    assert widths.allocator_settings["survivors"] == "8,2,1"
    assert widths.allocator_settings["tokens"] == "2048,16384,65536"
    for units in (["layers"], ["sublayers"]):
        depth = resolve(prune(units, {"params_ratio": 0.8}))
        assert depth.allocator == "evolutionary_depth"
        settings = {name: depth.allocator_settings[name] for name in ("children", "survivors", "tokens")}
        assert settings == {"children": 32, "survivors": "2,1", "tokens": "2048,32768"}
        assert depth.allocator_settings["initial"] == 64
        quick = resolve(prune(units, {"params_ratio": 0.8}, "evopress_quick"))
        assert quick.allocator_settings["generations"] == 12


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
    places = list(blocks(SHAPE, "sublayers"))

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
    assert removed_counts(whole, list(blocks(SHAPE, "layers"))) == {0: 2}


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
    gone = [one for one in blocks(shape, "sublayers") if (one.layer, one.row) in ((1, 1), (2, 0))]
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
