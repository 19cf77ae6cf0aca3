"""Weights of the layers' losses: the search against all widths there are, and what it is for."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from torch.nn.functional import cross_entropy

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.models.ablation import next_token_loss
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.allocators.dynamic_programming import DynamicProgramming
from resprout.tasks.prune.allocators.evolutionary import Evolutionary
from resprout.tasks.prune.allocators.spdy import Spdy, _Losses
from resprout.tasks.prune.budget import Knapsack
from resprout.tasks.prune.interfaces import Bench, Costs, Request
from resprout.tasks.prune.search import WidthProbe
from tiny_models import column, tiny_model

IDS = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(6))


def asked(model, kept_blocks, **values):
    """Of all blocks of 32 channels this many may stay."""
    shape = shape_of(model.config.to_dict())
    gone = sum(shape.ffn) - 32 * kept_blocks
    return Request(shape, shape.params - gone * shape.unit_params("ffn"), ("ffn",), 32, False, **values)


def alike(layers):
    """Every layer errs alike, so that only weights can tell them apart."""
    return [{"ffn": torch.linspace(0.01, 1, 128)[:, None]} for _ in range(layers)]


def loss_of(model):
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits.double(), IDS[:, 1:].flatten()).item()


def loss_at(model, scores, widths):
    with WidthProbe(Bench(model, IDS), scores, [("ffn", one) for one in range(len(widths))]).narrowed(widths):
        return loss_of(model)


def test_weights_by_hand():
    """Scores 1, 2, 3, 9 and 4, 5, 6, 7; of eight blocks three must go.

    All weighing the same these are 1, 2 and 3 of layer 0. If losses of layer 1 weigh a quarter they are 1 of
    layer 0 and 4 and 5 of layer 1, for 3.25; three of layer 1 cost 3.75, two of layer 0 and one 4.
    """
    model = tiny_model("llama", intermediate_size=4)
    shape = shape_of(model.config.to_dict())
    costs = Costs(5.0, lambda kind, layer, count: count)
    scores = [{"ffn": column(3, 9, 1, 2)}, {"ffn": column(4, 5, 6, 7)}]
    options = Knapsack(Request(shape, shape.params, ("ffn",), 1, costs=costs), scores)
    assert options.places == [("ffn", 0), ("ffn", 1)]
    assert options.widths(options.best()) == [1, 4]
    assert options.widths(options.best([1.0, 0.25])) == [3, 2]
    assert options.shape_with(options.best([1.0, 0.25])).ffn == (3, 2)


def test_the_loss_is_that_of_the_next_token():
    model = tiny_model("llama")
    assert next_token_loss(model(IDS).logits, IDS) == pytest.approx(loss_of(model), rel=1e-6)


@pytest.mark.parametrize("batch_tokens", [64, 48])
def test_weights_begin_as_measured(batch_tokens, monkeypatch):
    """The growth of the loss with one part narrowed, over its error there; the last FFN does nothing.

    With 48 tokens a batch the four samples are three and one.
    """
    monkeypatch.setattr("resprout.tasks.prune.allocators.spdy.BATCH_TOKENS", batch_tokens)
    model = tiny_model("llama", num_hidden_layers=3)
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    scores, kinds = alike(3), ("ffn", "kv_groups")
    for layer, by_kind in enumerate(scores):
        by_kind["kv_groups"] = column(1.0 + layer, 0.5)
    shape = shape_of(model.config.to_dict())
    bench, options = Bench(model, IDS), Knapsack(Request(shape, shape.params, kinds, 32, False), scores)
    losses = _Losses(bench, options, scores, 64)
    dense = loss_of(model)
    assert losses.of([3, 1] * 3) == pytest.approx(dense, rel=1e-6)
    for level, found in zip((2, 4), losses.measured_weights(), strict=True):
        expected = []
        for place in range(6):
            widths = [128, 2] * 3
            # Half of 128 channels or a block of 32; of two groups the one of the lower score goes at either.
            widths[place] = 128 // level if widths[place] == 128 else 1
            error = scores[0]["ffn"][: 128 - 128 // level].sum().item() if widths[place] > 1 else 0.5
            with losses.probe.narrowed(widths):
                expected.append((loss_of(model) - dense) / error)
        assert expected[4] == 0.0
        least = 0.1 * statistics.median(one for one in expected if one > 0)
        assert found == pytest.approx([max(one, least) for one in expected], rel=1e-3)
        assert found[4] == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("useless", [0, 1])
def test_the_search_finds_the_widths_of_least_loss(useless):
    """Three layers, whose errors are alike though one of them does next to nothing, keep 7 blocks of 12."""
    model = tiny_model("llama", num_hidden_layers=3)
    model.model.layers[useless].mlp.down_proj.weight.data.mul_(1e-3)
    scores, request = alike(3), asked(model, 7)
    widths = [
        tuple(32 * one for one in blocks)
        for blocks in itertools.product(range(1, 5), repeat=3)
        if sum(blocks) == 7
    ]
    best = min(widths, key=lambda one: loss_at(model, scores, one))
    found = Spdy(steps=300, change_ratio=0.5).allocate(request, scores, Bench(model, IDS))
    assert found.ffn == best
    assert found != DynamicProgramming().allocate(request, scores)


def test_it_is_no_worse_than_equal_weights_and_better_the_longer_it_looks():
    model = tiny_model("llama", num_hidden_layers=3)
    generator = torch.Generator().manual_seed(3)
    scores = [{"ffn": torch.rand(128, 1, generator=generator)} for _ in range(3)]
    request, bench = asked(model, 8), Bench(model, IDS)
    found = [DynamicProgramming(), *(Spdy(steps=steps) for steps in (0, 3, 100))]
    losses = [loss_at(model, scores, one.allocate(request, scores, bench).ffn) for one in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_each_choice_of_widths_is_tried_once_on_whole_samples(monkeypatch):
    seen, steps = [], []
    monkeypatch.setattr(
        "resprout.tasks.prune.allocators.spdy.next_token_loss",
        lambda logits, ids: seen.append(tuple(ids.shape)) or 1.0,
    )
    model = tiny_model("llama")
    bench = Bench(model, IDS, progress=lambda *args: steps.append(args))
    Spdy(steps=20, calibration_tokens=40).allocate(asked(model, 3), alike(2), bench)
    assert set(seen) == {(2, 16)}
    # The whole, each layer narrowed twice, and three blocks: 1 + 2 or 2 + 1.
    assert 6 <= len(seen) <= 7
    assert len(steps) == 21
    assert steps[0] == (1, 1, "batches with one part narrowed at a time")
    assert steps[-1] == (20, 20, "weights of the layers tried")


@pytest.mark.parametrize("allocator", [Spdy(steps=1), Evolutionary(generations=1, children=2)])
def test_a_loss_that_is_not_finite_is_said_to_be(allocator):
    model = tiny_model("llama", num_hidden_layers=3)
    model.lm_head.weight.data[5, 5] = torch.inf
    with pytest.raises(StageFailed, match="is not finite; the model's activations overflow in this dtype"):
        allocator.allocate(asked(model, 8), alike(3), Bench(model, IDS))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match=r"'spdy' has change_ratio: 1\.5; give from 0 to 1"):
        Spdy(change_ratio=1.5)
    with pytest.raises(BadInput, match="'spdy' has calibration_tokens: 0; give at least 1"):
        Spdy(calibration_tokens=0)
