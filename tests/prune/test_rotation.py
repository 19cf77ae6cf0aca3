"""SliceGPT's rotation: preserves outputs, finds a planted subspace, loses less than cutting channels."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import silent
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.repairs.rotation import Rotation
from resprout.tasks.prune.residual_stream import principal_directions
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape
from tiny_models import HIDDEN, tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(8))


def prune(hidden_share, **values):
    base = {"method": "shared_rotation", "units": ("hidden",), "round_to": 8}
    return PruneConfig.model_validate(base | {"target": {"non_embedding_ratio": hidden_share}} | values)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", HIDDEN)
def test_a_rotated_model_computes_the_same(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    before, weight = model(IDS).logits, model.model.layers[0].self_attn.o_proj.weight.clone()
    Rotation().prepare(model, make_plan(model, prune(1.0), IDS)[0], IDS, silent)
    after = model(IDS).logits
    assert (after - before).norm() / before.norm() < 1e-4
    assert not torch.allclose(weight, model.model.layers[0].self_attn.o_proj.weight, atol=1e-2)
    for name, tensor in model.named_parameters():
        if name.endswith("layernorm.weight") or name == "model.norm.weight":
            assert tensor.unique().tolist() == [1.0]
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize("family", HIDDEN)
def test_a_plan_that_keeps_all_directions_preserves_the_outputs(family):
    model = tiny_model(family)
    plan, scores = make_plan(model, prune(1.0), IDS)
    assert plan.hidden == tuple(range(64))
    assert (scores[0]["hidden"][:, 0].diff() <= 0).all()
    before = model(IDS).logits
    apply(model, plan, IDS)
    assert (model(IDS).logits - before).norm() / before.norm() < 1e-4


def test_directions_are_the_eigenvectors_of_the_normalised_stream():
    model = tiny_model("llama")
    values, directions = principal_directions(model, IDS)
    seen = []
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_pre_hook(lambda m, x: seen.append(x[0].reshape(-1, 64).double()))
    model(IDS)
    stream = torch.cat([x / x.square().mean(dim=1, keepdim=True).sqrt() for x in seen])
    variance = (stream @ directions.double()).square().sum(dim=0)
    torch.testing.assert_close(variance.float(), values, rtol=1e-4, atol=1e-2)
    _, singular, _ = torch.linalg.svd(stream, full_matrices=False)
    torch.testing.assert_close(values.double(), singular.square(), rtol=1e-4, atol=1e-2)


def test_a_stream_in_a_planted_subspace_is_cut_at_no_loss():
    """All writers write to 40 of 64 dimensions, turned at random so that no channel is empty."""
    model = tiny_model("llama")
    basis = torch.linalg.qr(torch.randn(64, 40, generator=torch.Generator().manual_seed(0))).Q
    onto = basis @ basis.T
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ onto)
    for layer in model.model.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.copy_(onto @ writer.weight)
    plan, scores = make_plan(model, prune(0.63), IDS)
    assert len(plan.hidden) == 40
    assert scores[0]["hidden"][40:].max() < 1e-4 * scores[0]["hidden"].max()
    before = model(IDS).logits
    apply(model, plan, IDS)
    assert model.config.hidden_size == 40
    assert (model(IDS).logits - before).norm() / before.norm() < 1e-3


@pytest.mark.parametrize("family", HIDDEN)
def test_less_is_lost_than_by_cutting_channels(family):
    dense = tiny_model(family)
    expected = dense(IDS).logits
    errors = {}
    for method in ("shared_rotation", "minitron_hidden"):
        model = copy.deepcopy(dense)
        plan, _ = make_plan(model, prune(0.76, method=method), IDS)
        apply(model, plan, IDS)
        assert model.config.hidden_size == 48
        errors[method] = (model(IDS).logits - expected).square().mean().item()
    assert errors["shared_rotation"] < errors["minitron_hidden"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", HIDDEN)
def test_sizes_reload_and_stock_classes(family, tied, tmp_path):
    dense = tiny_model(family, tie_word_embeddings=tied)
    config = prune(0.76)
    plan, _ = make_plan(dense, config, IDS)
    shape = implied_shape(shape_of(dense.config.to_dict()), config)
    pruned = copy.deepcopy(dense)
    apply(pruned, plan, IDS)
    sizes = count(pruned)
    assert sizes.params == plan.reached.params == shape.params
    assert sizes.non_embedding_params == plan.reached.non_embedding_params
    assert sizes.non_embedding_params <= 0.76 * plan.dense.non_embedding_params
    assert shape_of(json.loads(pruned.config.to_json_string())).sizes("float32") == sizes
    pruned.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "float32", "cpu")
    assert torch.equal(loaded(IDS).logits, pruned(IDS).logits)


def test_stock_transformers_load_it(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    plan, _ = make_plan(model, prune(0.76), IDS)
    apply(model, plan, IDS)
    model.save_pretrained(tmp_path)
    code = (
        "import sys, json, torch; sys.modules['resprout'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='float32')\n"
        "print(json.dumps(model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_equal_runs_through_the_doors_give_equal_bytes(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16", tie_word_embeddings=True)
    calibration = write_calibration(tmp_path / "calibration", IDS)
    found = []
    for run in ("first", "second"):
        where = through_the_doors(prune(0.76), tmp_path / "model", calibration, tmp_path / run)
        found.append((where["pruned"] / "model.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"repair": "none"}, "'principal' scores hidden directions, but repair 'none' keeps channels"),
        ({"criterion": "hidden_magnitude"}, "scores hidden channels, but repair 'rotation' keeps directions"),
    ],
)
def test_directions_and_channels_are_not_mixed(values, says):
    with pytest.raises(BadInput, match=says):
        resolve(prune(0.9, **values))
