"""Allocators by a measure of each layer: cases worked by hand and independent references."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.allocators import adaptive, cfsp_softmax, zeroth_order
from resprout.tasks.prune.allocators.pq_index import PqIndex, kept_shares, share
from resprout.tasks.prune.budget import spend_shares
from resprout.tasks.prune.criteria.cfsp import Cfsp
from resprout.tasks.prune.criteria.output_change import OutputChange
from resprout.tasks.prune.interfaces import Bench, Request
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.residual_stream import layer_cosines
from resprout.tasks.prune.scoring import score_units
from tiny_models import read_units, tiny_model

IDS = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(6))
SHAPE = Shape("mistral", 10, 10, 2, (8, 8, 8), (2,) * 3, (1,) * 3, config={"tie_word_embeddings": True})
"""A channel holds 30 parameters."""


def deep(family="llama"):
    return tiny_model(family, num_hidden_layers=4)


def granted(kept_channels, shares, round_to=1):
    request = Request(SHAPE, SHAPE.params - 30 * (24 - kept_channels), ("ffn",), round_to)
    return spend_shares(request, {"ffn": shares}).ffn


def test_shares_by_hand():
    """Of 12 channels in the proportion 1 : 2 : 3 layers keep 2, 4, 6.

    Of 18 that would be 3, 6, 9, but a layer has 8: the one that is left goes to whom it is due next, at
    t = 3.5 / 1 or 6.5 / 2: the second.
    """
    assert granted(12, [0.1, 0.2, 0.3]) == (2, 4, 6)
    assert granted(18, [0.1, 0.2, 0.3]) == (3, 7, 8)
    assert granted(18, [1, 2, 3]) == (3, 7, 8)
    assert granted(24, [1, 2, 3]) == (8, 8, 8)
    assert granted(12, [1, 1, 1], round_to=4) == (4, 4, 4)
    assert granted(12, [0.0, -1.0, 1.0]) == (2, 2, 8)
    with pytest.raises(StageFailed, match="measure of layer 1 is not finite"):
        granted(12, [1, math.nan, 1])


def test_a_sigmoid_of_the_angle_by_hand():
    """Angles 0.1 and 0.3, mean 0.2: sigmoid(-1) and sigmoid(1) at steepness 10."""
    expected = [1 / (1 + math.e), 1 / (1 + 1 / math.e)]
    assert cfsp_softmax.budgets([0.1, 0.3], 10.0) == pytest.approx(expected)
    assert cfsp_softmax.budgets([0.2, 0.2], 10.0) == [0.5, 0.5]


def test_amplitudes_by_hand():
    """Distances -0.9, -0.6, -0.3: deviations -0.3, 0, 0.3, so importances -1, 0, 1."""
    assert adaptive.kept_shares([-0.9, -0.6, -0.3], 0.8, 0.25) == pytest.approx([0.75, 0.8, 0.85])
    assert adaptive.kept_shares([-0.9, -0.6, -0.3], 0.8, 1.0) == pytest.approx([0.6, 0.8, 1.0])
    assert adaptive.kept_shares([-0.9, -0.6, -0.3], 0.3, 1.0) == pytest.approx([0.01, 0.3, 1.0])
    assert adaptive.kept_shares([-0.9, -0.9], 0.8, 1.0) == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize("steps", [3, 10, 35])
def test_all_steps_at_once_are_the_steps_of_the_authors_code(steps):
    """Step by step as `adaptive_update_prune_distribution` does, importances staying as they are."""
    distances = [-0.95, -0.9, -0.7, -0.85, -0.99]
    mean = sum(distances) / 5
    largest = max(abs(one - mean) for one in distances)
    removed = [0.0] * 5
    for _ in range(steps):
        removed = [
            max(min(one + 0.02 - 0.02 * (distance - mean) / largest, 0.99), 0)
            for one, distance in zip(removed, distances, strict=True)
        ]
    found = adaptive.kept_shares(distances, 1 - 0.02 * steps, 1.0)
    assert found == pytest.approx([1 - one for one in removed])


def test_cosines_equal_numpy_on_the_hidden_states(family):
    model = deep(family)
    hidden = [one.double().numpy() for one in model(IDS, output_hidden_states=True).hidden_states]
    found = list(layer_cosines(Bench(model, IDS)))
    assert len(found) == 4
    for layer in range(3):  # behind the last the model gives normed states
        x, y = hidden[layer], hidden[layer + 1]
        expected = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        np.testing.assert_allclose(found[layer], expected.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("allocator", [cfsp_softmax.CfspSoftmax(), adaptive.Adaptive()])
def test_a_layer_that_turns_nothing_keeps_least(allocator):
    model = deep()
    for reader in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        reader.weight.mul_(0.05)
    shape = shape_of(model.config.to_dict())
    request = Request(shape, int(shape.params * 0.9), ("ffn",), 4, uniform=False)
    kept = allocator.allocate(request, [], Bench(model, IDS)).ffn
    assert kept[2] < min(kept[0], kept[1], kept[3])


def test_the_pq_index_by_hand():
    """Weights 1, 4 at p = 1/2, q = 1: ((1 + 2) / 2)^2 = 2.25 over (1 + 4) / 2 = 2.5: 1 - I = 0.9.

    Its power is p q / (q - p) = 1. One weight of four: (1 / 4)^2 / (1 / 4) = 1 / 4.
    """
    assert share(torch.tensor([1.0, -4.0]), 0.5, 1.0) == pytest.approx(0.9)
    assert share(torch.tensor([0.0, 0.0, 7.0, 0.0]), 0.5, 1.0) == pytest.approx(0.25)
    assert share(torch.full((9,), -3.0), 0.5, 1.0) == pytest.approx(1.0)
    values = np.random.default_rng(0).normal(size=500)
    for p, q in ((0.5, 1.0), (1.0, 2.0), (0.3, 0.9)):
        index = 1 - 500 ** (1 / q - 1 / p) * (np.abs(values) ** p).sum() ** (1 / p) / (
            np.abs(values) ** q
        ).sum() ** (1 / q)
        expected = (1 - index) ** (p * q / (q - p))
        assert share(torch.tensor(values), p, q) == pytest.approx(expected, rel=1e-5)


def test_one_factor_meets_the_target():
    """Gaps 0.1 and 0.3 of equal sizes: gamma 1 removes 0.2 of all, gamma 2 removes 0.4."""
    assert kept_shares([0.9, 0.7], [1, 1], 0.8, 0.9) == pytest.approx([0.9, 0.7])
    assert kept_shares([0.9, 0.7], [1, 1], 0.6, 0.9) == pytest.approx([0.8, 0.4])
    assert kept_shares([0.9, 0.7], [3, 1], 0.85, 0.9) == pytest.approx([0.9, 0.7])
    # Gamma 5: the second would lose 1.5 and loses 0.9, the first 0.5.
    assert kept_shares([0.9, 0.7], [1, 1], 0.3, 0.9) == pytest.approx([0.5, 0.1])
    assert kept_shares([0.9, 0.7], [1, 1], 0.01, 0.9) == pytest.approx([0.1, 0.1])
    assert kept_shares([1.0, 0.7], [1, 1], 0.3, 0.9) == pytest.approx([1.0, 0.1])
    assert kept_shares([1.0, 1.0], [1, 1], 0.3, 0.9) == [1.0, 1.0]


def test_sparse_weights_lose_more():
    model = deep()
    mlp = model.model.layers[1].mlp
    for reader in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        reader.weight[torch.rand(reader.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    shape = shape_of(model.config.to_dict())
    request = Request(shape, int(shape.params * 0.9), ("ffn",), 4, uniform=False)
    kept = PqIndex().allocate(request, [], Bench(model, IDS)).ffn
    assert kept[1] < min(kept[0], kept[2], kept[3])
    for p, q in ((0.0, 1.0), (1.0, 1.0), (2.0, 3.0)):
        with pytest.raises(BadInput, match="give 0 < p <= 1 and p < q"):
            PqIndex(p, q)


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        (zeroth_order.ZerothOrder, {"noise_std": 0.0}, "has noise_std: 0; give from 1e-06 to 1"),
        (zeroth_order.ZerothOrder, {"share_margin": 1.5}, "has share_margin: 1.5; give from 0 to 1"),
        (adaptive.Adaptive, {"amplitude": -1.0}, "has amplitude: -1; give from 0 to 1"),
        (cfsp_softmax.CfspSoftmax, {"steepness": math.nan}, "has steepness: nan; give from 0 to 1000"),
        (PqIndex, {"max_removed_ratio": 0.0}, "has max_removed_ratio: 0; give from 0.01 to 1"),
        (OutputChange, {"removed_ratio": 2.0}, "has removed_ratio: 2; give from 0 to 1"),
    ],
)
def test_settings_out_of_bounds(method, settings, says):
    with pytest.raises(BadInput, match=says):
        method(**settings)


def test_an_allocators_settings_are_refused_before_anything_is_scored(monkeypatch):
    config = PruneConfig.model_validate(
        {
            "method": "sap", "units": ["ffn"], "target": {"params_ratio": 0.9}, "round_to": 8,
            "allocator_settings": {"p": 2.0},
        }
    )  # fmt: skip
    monkeypatch.setattr("resprout.tasks.prune.planning.score_units", None)
    with pytest.raises(BadInput, match=r"'pq_index' has p: 2\.0"):
        make_plan(deep(), config, IDS)


def test_ecoflap_shares_by_hand():
    """Base 0.5, floor 0.2: 0.3 on average in the proportion 1 : 3, so 0.15 and 0.45 beside the floor."""
    assert zeroth_order.kept_shares([1.0, 3.0], 0.5, 0.2) == pytest.approx([0.35, 0.65])
    assert zeroth_order.kept_shares([1.0, 3.0], 0.05, 0.0) == pytest.approx([0.025, 0.075])
    assert zeroth_order.kept_shares([0.0, 0.0], 0.5, 0.2) == pytest.approx([0.5, 0.5])


def test_no_layer_loses_more_than_the_target_and_a_tenth(monkeypatch):
    """As the authors' scripts set it (max_sparsity_per_layer = target + 0.1): of half, each keeps 0.4.

    The tenth that is left goes 1 : 3: 0.05 and 0.15, so of 100 channels 45 and 55. Of a quarter each keeps
    0.65, and so 70 and 80.
    """
    monkeypatch.setattr(zeroth_order, "importances", lambda *_: [1.0, 3.0])
    shape = Shape("mistral", 10, 10, 2, (100,) * 2, (2,) * 2, (1,) * 2, config={"tie_word_embeddings": True})
    for kept, widths in ((0.5, (45, 55)), (0.75, (70, 80))):
        request = Request(shape, shape.params - round(30 * 200 * (1 - kept)), ("ffn",), 1, uniform=False)
        assert zeroth_order.ZerothOrder().allocate(request, [], Bench(None, IDS)).ffn == widths


def noise_of(model, kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [zeroth_order.removable(layer, kinds) for layer in anatomy(model).layers]
    return weights, [[torch.randn(one.shape, generator=generator) for one in group] for group in weights]


def next_token_loss(model, ids):
    logits = model(ids).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.double().mean()


def test_two_losses_are_those_of_whole_models(family):
    """Of the model with the noise, run from the start: each tensor has noise of its own, as in the paper."""
    model, std, sample = deep(family), 1e-3, IDS[:1]
    kinds = tuple(unit for unit in ("ffn", "experts") if unit in FAMILIES[family].units)
    found = zeroth_order.importances(Bench(model, sample), kinds, std, 64, seed=5)
    weights, noise = noise_of(model, kinds, 5)
    for group, drawn, one in zip(weights, noise, found, strict=True):
        slopes = 0.0
        for weight, added in zip(group, drawn, strict=True):
            weight.add_(std * added)
            above = next_token_loss(model, sample).item()
            weight.add_(-2 * std * added)
            slopes += abs(above - next_token_loss(model, sample).item()) / (2 * std)
            weight.add_(std * added)
        expected = slopes / sum(w.numel() for w in group)
        np.testing.assert_allclose(one, expected, rtol=2e-2, atol=1e-8)


@pytest.mark.parametrize("family_", ["gemma2", "gpt_neox", "llama", "phi3", "qwen2"])
def test_two_losses_give_the_slope_along_the_noise(family_):
    """Against autograd, where nothing has kinks: each tensor's gradient times its noise, added up.

    In double precision; the slopes of the tensors are added by their sizes, so that they do not cancel.
    """
    model, sample = deep(family_).double(), IDS[:1]
    found = zeroth_order.importances(Bench(model, sample), ("ffn",), 3e-4, 64, seed=5)
    weights, noise = noise_of(model, ("ffn",), 5)
    model.requires_grad_(True)
    next_token_loss(model, sample).backward()
    grads = {p.data_ptr(): p.grad for p in model.parameters()}
    for group, drawn, one in zip(weights, noise, found, strict=True):
        slopes = sum(float((grads[w.data_ptr()] * z).sum().abs()) for w, z in zip(group, drawn, strict=True))
        count = sum(w.numel() for w in group)
        np.testing.assert_allclose(one * count, slopes, rtol=5e-3, atol=5e-4)


def test_each_sample_has_noise_of_its_own():
    """So the same sample twice is not what it is once."""
    model = deep().double()
    once = zeroth_order.importances(Bench(model, IDS[:1]), ("ffn",), 1e-4, 32, seed=5)
    twice = zeroth_order.importances(Bench(model, IDS[:1].repeat(2, 1)), ("ffn",), 1e-4, 32, seed=5)
    assert twice != pytest.approx(once, rel=1e-3)


def test_noise_leaves_every_bit_as_it_was():
    model = deep("qwen2").bfloat16()
    before = copy.deepcopy(model.state_dict())
    zeroth_order.importances(Bench(model, IDS), ("ffn", "kv_groups"), 0.01, 64, seed=5)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("relative_to", ["channel", "block"])
def test_cfsp_on_the_weights_of_every_family(family, relative_to):
    """Against numpy, on the stock names of the tensors.

    Relative to the channel as `three_w_one_wa` of the released code: each matrix [hidden, channels] over its
    sums along dim 0, the three added up, times the activation norm, and the mean along dim 0.
    """
    if "ffn" not in read_units(family):
        return
    model = tiny_model(family)
    criterion = Cfsp() if relative_to == "channel" else Cfsp(relative_to)
    found = score_units(model, criterion, ("ffn",), IDS)[0]["ffn"].flatten().double().numpy()
    layer = anatomy(model).layers[0]
    reader, seen = layer.reader("ffn"), []
    hook = reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
    model(IDS)
    hook.remove()
    norm = np.linalg.norm(torch.cat(seen).double().numpy(), axis=0)
    weights = {
        name: one.double().numpy()
        for name, one in layer.tensors.items()
        if one.dim() > 1 and "att" not in name
    }
    total = np.zeros_like(norm)
    for name, weight in weights.items():
        if "gate_up" in name:
            parts = np.split(weight, 2)
        elif name.endswith(("fc2.weight", "down_proj.weight", "4h_to_h.weight", "mlp.c_proj.weight")):
            turned = weight if family == "gpt2" else weight.T
            parts = [np.abs(turned) * norm[:, None]]
        else:
            parts = [weight.T if family == "gpt2" else weight]
        for part in parts:
            over = 1 if relative_to == "channel" else None
            # Of a channel that is never active the sum is 0, and so is its score.
            share = np.abs(part) / np.maximum(np.abs(part).sum(axis=over, keepdims=True), 1e-300)
            total += share.mean(1) if relative_to == "channel" else share.sum(1)
    np.testing.assert_allclose(found, norm * total, rtol=1e-4)
