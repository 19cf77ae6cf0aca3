"""Hidden channels: sizes by hand, scores against a reference, the norms' scale, other units beside them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from masked_channels import without_channels
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.shape import Shape, count, shape_of
from resprout.tasks.prune.criteria.hidden_activation import HiddenActivation
from resprout.tasks.prune.criteria.hidden_magnitude import HiddenMagnitude
from resprout.tasks.prune.interfaces import Request
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape, request, uniform_shape
from tiny_models import HIDDEN, read_units, tiny_model

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(6))


def prune(target, units=("hidden",), **values):
    base = {
        "method": "minitron_hidden",
        "criterion": "hidden_magnitude",
        "layout": "uniform",
        "repair": "none",
        "round_to": 8,
        "target": target,
        "units": units,
    }
    return PruneConfig.model_validate(base | values)


DENSE = Shape(
    model_type="llama",
    hidden=60,
    vocab=100,
    head_dim=10,
    ffn=(160, 160),
    kv_heads=(6, 6),
    heads_per_group=(1, 1),
    config={"tie_word_embeddings": True},
)
"""A channel holds 100 in the embeddings, 1 in the last norm, 3 * 160 + 4 * 60 + 2 = 722 in a layer: 1545."""


def test_which_families_have_them():
    assert set(FAMILIES) - set(HIDDEN) == {"gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "opt"}


def test_parameters_of_a_channel_by_hand():
    assert [DENSE.unit_params("hidden", layer) for layer in (0, 1)] == [722 + 101, 722]
    assert DENSE.params == 60 * 1545
    assert DENSE.with_counts("hidden", (48, 48)).params == 48 * 1545


@pytest.mark.parametrize(
    ("model_type", "target", "hidden"),
    [
        ("mistral", {"params": 60 * 1545 - 1}, 56),
        ("mistral", {"params": 48 * 1545}, 48),
        ("mistral", {"params": 48 * 1545 - 1}, 40),
        ("mistral", {"non_embedding_params": 48 * 1445}, 48),  # the embeddings shrink as well
        ("mistral", {"non_embedding_params": 48 * 1445 - 1}, 40),
        ("llama", {"params": 60 * 1545 - 1}, 48),  # 6 heads divide 48 and 24, not 56 and 40
        ("llama", {"params": 40 * 1545}, 24),
    ],
)
def test_targets_become_a_hidden_size(model_type, target, hidden):
    shape = implied_shape(replace(DENSE, model_type=model_type), prune(target))
    assert (shape.hidden, shape.ffn, shape.kv_heads) == (hidden, (160, 160), (6, 6))


def test_channels_and_ffn_keep_about_the_same_share():
    """Half the size by both: a share s with s * (101 + 2 * (480 s + 242)) = 0.5 * 1545, s = 0.643.

    Hidden 40 is nearest to 38.6 and leaves an FFN of (46350 - 40 * 585) / (40 * 6) = 95.6: 88.
    """
    wanted = Request(replace(DENSE, model_type="mistral"), 46350, ("ffn", "hidden"), round_to=8)
    shape = uniform_shape(wanted)
    assert (shape.hidden, shape.ffn) == (40, (88, 88))


def test_what_cannot_be_is_said():
    with pytest.raises(BadInput, match=r"names hidden, which a gemma2 model cannot lose"):
        request(shape_of(tiny_model("gemma2").config.to_dict()), prune({"params_ratio": 0.9}))
    with pytest.raises(BadInput, match=r"hidden.*per_layer; give layout: uniform, or leave hidden out"):
        request(DENSE, prune({"params_ratio": 0.9}, layout="per_layer"))
    with pytest.raises(BadInput, match=r"reaches \d+ .* at best"):
        request(DENSE, prune({"params": 1000}))


def outputs_of(model, modules):
    seen = []
    hooks = [module.register_forward_hook(lambda m, i, out: seen.append(out)) for module in modules]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", HIDDEN)
def test_scores_equal_a_reference_by_stock_names(family):
    model = tiny_model(family)
    magnitude = score_units(model, HiddenMagnitude(), ("hidden",), IDS)
    activation = score_units(model, HiddenActivation(), ("hidden",), IDS)
    for index, layer in enumerate(model.model.layers):
        squares = torch.zeros(64)
        for name, tensor in layer.named_parameters():
            if "q_norm" in name or "k_norm" in name or tensor.numel() % 64 or tensor.dim() == 1:
                continue
            # Writers hold the channel in the last axis but one, readers in the last.
            axis = tensor.dim() - (2 if name.split(".weight")[0].endswith(("o_proj", "down_proj")) else 1)
            squares += tensor.square().movedim(axis, 0).reshape(64, -1).sum(dim=1)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            squares += norm.weight.square()
        torch.testing.assert_close(magnitude[index]["hidden"][:, 0], squares.sqrt(), rtol=1e-4, atol=1e-5)
        seen = outputs_of(model, (layer.input_layernorm, layer.post_attention_layernorm))
        # The authors' code: abs().mean(dim=tokens).pow(2).sum(dim=samples), at last the square root.
        expected = sum(out.abs().mean(dim=1).square().sum(dim=0).sqrt() for out in seen)
        torch.testing.assert_close(activation[index]["hidden"][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_other_order_of_aggregations_is_a_setting():
    """L2 over tokens and the mean over samples, which the paper compares as well."""
    model = tiny_model("llama")
    found = score_units(model, HiddenActivation("l2", "mean"), ("hidden",), IDS)
    for index, layer in enumerate(model.model.layers):
        seen = outputs_of(model, (layer.input_layernorm, layer.post_attention_layernorm))
        expected = sum(out.square().sum(dim=1).sqrt().mean(dim=0) for out in seen)
        torch.testing.assert_close(found[index]["hidden"][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_planted_channels_that_carry_nothing_go_first():
    model = tiny_model("llama")
    gone = [3, 10, 11, 40, 41, 42, 43, 63]
    model.model.embed_tokens.weight[:, gone] *= 1e-4
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[gone] *= 1e-4
        layer.mlp.down_proj.weight[gone] *= 1e-4
    shape = shape_of(model.config.to_dict()).with_counts("hidden", (56, 56))
    plan, _ = make_plan(model, prune({"params": shape.params}, criterion="hidden_activation"), IDS)
    assert plan.hidden == tuple(channel for channel in range(64) if channel not in gone)
    before = model(IDS).logits
    apply(model, plan)
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("units", [("hidden", "ffn"), ("hidden", "kv_groups"), ("hidden", "heads")])
@pytest.mark.parametrize("family", HIDDEN)
def test_hidden_channels_beside_other_units(family, units, tied):
    """The plan's own criterion scores one kind, so the other kind's kept units are written into it."""
    if not set(units) <= set(read_units(family)):
        pytest.skip(f"{family} models have no such units")
    dense = tiny_model(family, tie_word_embeddings=tied)
    shape = shape_of(dense.config.to_dict()).with_counts("hidden", (48, 48))
    plan, _ = make_plan(dense, prune({"params": shape.params}), IDS)
    assert len(plan.hidden) == 48
    other = {
        "ffn": {"ffn": tuple(range(0, 128, 2))},
        "kv_groups": {"kv_groups": (1,)},
        "heads": {"heads": (1, 2)},
    }
    gone = {"ffn": range(1, 128, 2), "kv_groups": range(32), "heads": [*range(16), *range(48, 64)]}[units[1]]
    layers = tuple(layer.model_copy(update=other[units[1]]) for layer in plan.layers)
    plan = plan.model_copy(update={"layers": layers, "units": units})
    pruned = copy.deepcopy(dense)
    apply(pruned, plan)
    without_channels(dense, plan.hidden)
    for layer in dense.model.layers:
        reader = layer.mlp.down_proj if units[1] == "ffn" else layer.self_attn.o_proj
        reader.weight[:, list(gone)] = 0
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-5)
    assert shape_of(json.loads(pruned.config.to_json_string())).sizes("float32") == count(pruned)
    if tied:
        assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_readers_are_solved_beside_a_cut_of_hidden_channels(inputs):
    errors = {}
    for repair, settings in (("none", {}), ("least_squares", {"inputs": inputs})):
        dense = tiny_model("llama", num_hidden_layers=3)
        shape = shape_of(dense.config.to_dict()).with_counts("hidden", (56, 56, 56))
        plan, _ = make_plan(dense, prune({"params": shape.params}), IDS)
        layers = tuple(layer.model_copy(update={"ffn": tuple(range(64))}) for layer in plan.layers)
        plan = plan.model_copy(
            update={
                "layers": layers,
                "units": ("ffn", "hidden"),
                "repair": repair,
                "repair_settings": settings,
            }
        )
        pruned = copy.deepcopy(dense)
        apply(pruned, plan, IDS, 1e-3)
        errors[repair] = (pruned(IDS).logits - dense(IDS).logits).square().mean()
    assert errors["least_squares"] < errors["none"]


def test_a_plan_with_channels_that_are_not_there_is_refused():
    model = tiny_model("llama")
    plan, _ = make_plan(model, prune({"params_ratio": 0.9}), IDS)
    with pytest.raises(BadInput, match=r"keeps hidden channels \[3, 2\]"):
        apply(model, plan.model_copy(update={"hidden": (3, 2)}))
    with pytest.raises(BadInput, match="keeps hidden channels"):
        apply(model, plan.model_copy(update={"hidden": (0, 64)}))
