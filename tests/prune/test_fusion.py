"""FuseGPT's fusion: fused tensors by hand, the group of a layer, and what fusing brings back."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import silent
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.repairs.fusion import (
    Fusion,
    _FusedTensor,
    distance,
    fused_tensors,
    matrices,
    neighbours,
)
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import request
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(9))
QUICK = {"rank": 8, "epochs": 40, "learning_rate": 1e-2, "update_rate": 1e-3}


def config(**values):
    base = {"method": "fusegpt", "units": ["layers"], "target": {"non_embedding_ratio": 0.76}}
    settings = {} if "repair" in values else {"repair_settings": QUICK}
    return PruneConfig.model_validate(base | settings | values)


def test_a_graft_by_hand():
    """W + B A + (C D) * R and b + c * r, in numpy."""
    draw = np.random.default_rng(0)
    w, r, b, a, c, d = (
        draw.standard_normal(shape).astype("float32")
        for shape in ((3, 5), (3, 5), (3, 2), (2, 5), (3, 2), (2, 5))
    )
    fused = _FusedTensor(torch.tensor(r), 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(torch.tensor(w)), torch.tensor(w))
    with torch.no_grad():
        for parameter, value in zip([*fused.coefficients, *fused.update], (c, d, b, a), strict=True):
            assert parameter.requires_grad
            parameter.copy_(torch.tensor(value))
    expected = w + b @ a + (c @ d) * r
    torch.testing.assert_close(fused(torch.tensor(w)), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert fused(torch.tensor(w).bfloat16()).dtype == torch.bfloat16
    bias = _FusedTensor(torch.tensor([1.0, -2.0]), 2, torch.Generator())
    with torch.no_grad():
        bias.coefficients[0].copy_(torch.tensor([0.5, 3.0]))
    assert bias(torch.tensor([10.0, 20.0])).tolist() == [10.5, 14.0]


def test_a_graft_leaves_a_plain_weight():
    layer = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).requires_grad_(False)
    removed = matrices(copy.deepcopy(layer))
    assert list(removed) == ["0.weight", "0.bias"]
    names = [name for name, _ in layer.named_parameters()]
    with fused_tensors(layer, removed, 2, torch.Generator().manual_seed(1)) as tensors, torch.no_grad():
        for fused in tensors:
            fused.coefficients[0].add_(1.0)
        expected = layer[0].weight.clone(), layer[0].bias.clone()
    assert type(layer[0]) is nn.Linear
    assert [name for name, _ in layer.named_parameters()] == names
    assert torch.equal(layer[0].weight, expected[0])
    assert torch.equal(layer[0].bias, expected[1])
    assert not torch.equal(layer[0].weight, removed["0.weight"])
    assert not layer[0].weight.requires_grad


@pytest.mark.parametrize(
    ("layer", "group", "expected"),
    [
        (10, 7, range(6, 14)),
        (0, 7, range(8)),
        (3, 7, range(8)),
        (17, 7, range(12, 20)),
        (19, 7, range(12, 20)),
        (10, 2, range(9, 12)),
        (5, 40, range(20)),
    ],
)
def test_the_group_of_a_layer(layer, group, expected):
    """Windows of the authors' code, which counts the layer itself in its group size of 8."""
    assert neighbours(range(20), layer, group) == list(expected)


def test_layers_that_are_gone_are_no_neighbours():
    assert neighbours([0, 2, 3, 5, 6, 9], 5, 2) == [3, 5, 6]


def test_distance_by_hand():
    """Tokens (3, 4) and (0, 2) in place of (3, 0) and (0, 1): 16 / 9 and 1 / 1."""
    found, wanted = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(distance(found, wanted), torch.tensor((16 / 9 + 1) / 2))


def fused(model, settings):
    """The plan, and the model with its removed layers fused and cut off."""
    plan, _ = make_plan(model, settings, IDS)
    pruned = copy.deepcopy(model)
    apply(pruned, plan, IDS)
    return plan, pruned


def error(model, dense):
    expected = dense(IDS).logits
    return ((model(IDS).logits - expected).norm() / expected.norm()).item()


def test_less_is_lost_than_by_cutting(family):
    dense = tiny_model(family, num_hidden_layers=4)
    plan, pruned = fused(dense, config())
    _, cut = fused(dense, config(repair="none"))
    assert error(pruned, dense) < 0.8 * error(cut, dense)
    assert len(plan.layers) < 4
    assert count(pruned).params == plan.reached.params == count(cut).params
    assert shape_of(pruned.config.to_dict()).stock
    assert not any(one.requires_grad for one in pruned.parameters())


def test_the_coefficients_alone_carry_the_removed_layer():
    """All matrices of the three layers that stay change, and less is lost, without the update B A."""
    dense = tiny_model("llama", num_hidden_layers=4)
    alone = {**QUICK, "update_rate": 0.0}
    _, pruned = fused(dense, config(repair_settings=alone))
    _, cut = fused(dense, config(repair="none"))
    changed = [
        name
        for (name, one), other in zip(pruned.named_parameters(), cut.parameters(), strict=True)
        if not torch.equal(one, other)
    ]
    assert len(changed) == 3 * 7
    assert error(pruned, dense) < error(cut, dense)


def test_layers_outside_the_group_stay_as_they_are():
    dense = tiny_model("llama", num_hidden_layers=6)
    settings = config(repair_settings={**QUICK, "group": 2}, target={"non_embedding_ratio": 0.84})
    plan, pruned = fused(dense, settings)
    (gone,) = set(range(6)) - {plan.source(layer) for layer in range(5)}
    near = set(neighbours(range(6), gone, 2))
    for place in range(5):
        source = plan.source(place)
        same = torch.equal(
            pruned.model.layers[place].mlp.up_proj.weight, dense.model.layers[source].mlp.up_proj.weight
        )
        assert same == (source not in near)


def test_several_layers_go_one_after_another():
    dense, told = tiny_model("llama", num_hidden_layers=6), []
    plan, _ = make_plan(dense, config(target={"non_embedding_ratio": 0.51}), IDS)
    pruned = copy.deepcopy(dense)
    apply(pruned, plan, IDS, progress=lambda *args: told.append(args))
    _, cut = fused(dense, config(repair="none", target={"non_embedding_ratio": 0.51}))
    assert [one for one in told if one[2] == "layers fused"] == [(n, 3, "layers fused") for n in (1, 2, 3)]
    assert error(pruned, dense) < 0.8 * error(cut, dense)


def test_equal_runs_give_equal_weights_whatever_was_drawn_before():
    dense = tiny_model("qwen2", num_hidden_layers=4, dtype="bfloat16")
    torch.manual_seed(1)
    _, first = fused(dense, config())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    _, second = fused(dense, config())
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.bfloat16
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    _, other = fused(dense, config(repair_settings={**QUICK, "seed": 18}))
    assert error(first, other) > 0


def test_stock_transformers_load_it(tmp_path):
    _, pruned = fused(tiny_model("llama", num_hidden_layers=4), config())
    pruned.save_pretrained(tmp_path)
    code = (
        "import sys, json, torch; sys.modules['resprout'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='float32')\n"
        "print(json.dumps(model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = pruned(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_what_it_cannot_do_is_said_at_once():
    with pytest.raises(BadInput, match="'fusion' is not for ffn"):
        resolve(config(method="flap", units=["ffn"], repair="fusion"))
    with pytest.raises(BadInput, match="stream, but criterion 'macro_influence' runs the whole model"):
        resolve(config(memory="stream"))
    model = tiny_model("llama", num_hidden_layers=4)
    settings = PruneConfig.model_validate(
        {
            "method": "magnitude",
            "units": ["ffn"],
            "layout": "per_layer",
            "target": {"params_ratio": 0.9},
            "round_to": 4,
        }
    )
    plan, _ = make_plan(model, settings, IDS)
    apply(model, plan)
    with pytest.raises(BadInput, match="'fusion' adds layers up, but those of this model have different"):
        request(shape_of(model.config.to_dict()), config(layout="per_layer"))
    dense = tiny_model("llama", num_hidden_layers=4)
    plan, _ = make_plan(dense, config(), IDS)
    with pytest.raises(BadInput, match="cannot train in float16"):
        Fusion().prepare(dense.half(), plan, IDS, silent)
    with pytest.raises(StageFailed, match="diverged with learning_rate 1e"):
        Fusion(learning_rate=1e30, epochs=3).prepare(dense.float(), plan, IDS, silent)
