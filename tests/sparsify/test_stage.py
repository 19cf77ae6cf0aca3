"""Whole models in a pattern of zeros, against numpy and the layers' own inputs; what does not fit says so."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, SparsifyConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.forward import watch
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.sparsify.layers import keeps_to, make_sparse
from resprout.tasks.sparsify.pattern import METHODS, Pattern, check_sparsity
from resprout.tasks.sparsify.stage import sparsify
from tiny_models import tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (6, 16), generator=torch.Generator().manual_seed(5))
SPARSE = {"mixtral", "qwen2_moe", "qwen3_moe"}


def matrices(model):
    """Each sparse weight as [outputs, inputs]."""
    for layer in anatomy(model).layers:
        for name, _ in layer.shape.matrices(layer.index):
            weight = layer.module.get_parameter(name)
            yield layer.index, name, weight.T if layer.family.transposed else weight.flatten(0, -2)


def cases():
    for method in METHODS:
        for family in sorted(FAMILIES):
            if method.declared["needs"] == "weights" or family not in SPARSE:
                yield method.name, family


@pytest.mark.parametrize(("method", "family"), cases())
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_every_matrix_keeps_to_the_pattern_and_all_else_stays(method, family, pattern):
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    found = make_sparse(model, METHODS.get(method)(), Pattern.of(pattern), IDS)
    total = zeros = 0
    for _, _, weight in matrices(model):
        assert keeps_to(weight, Pattern.of(pattern))
        total, zeros = total + weight.numel(), zeros + int((weight == 0).sum())
    assert found["pattern_zeros_share"] == pytest.approx(zeros / total, abs=1e-9)
    assert found["zeros_share"] == pytest.approx(zeros / count(model).params)
    # Of OPT's ReLUs some give 0 for every token, and SparseGPT drops all that reads them.
    assert zeros == total / 2 or (method, family) == ("sparsegpt", "opt")
    before = dense.state_dict()
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    prefix = anatomy(model).family.layer_prefix
    assert changed == {f"{prefix}{index}.{name}" for index, name, _ in matrices(model)}
    assert not torch.allclose(model(IDS).logits, dense(IDS).logits, atol=1e-3)


def test_wanda_looks_at_what_the_sparse_layers_before_give():
    """|W| times the norm of the inputs, in numpy, where the layer before is sparse already."""
    dense = tiny_model("llama")
    model = copy.deepcopy(dense)
    make_sparse(model, METHODS.get("wanda")(), Pattern.of("2:4"), IDS)
    first = copy.deepcopy(dense)
    first.model.layers[0] = model.model.layers[0]
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        seen = []
        with watch(first.model.layers[1].get_submodule(name), seen.append):
            first(IDS)
        weight = dense.model.layers[1].get_submodule(name).weight.numpy()
        scores = np.abs(weight) * np.linalg.norm(torch.cat(seen).double().numpy(), axis=0)
        order = np.argsort(-scores.reshape(len(scores), -1, 4), axis=2, kind="stable")
        mask = np.zeros_like(order, dtype=bool)
        np.put_along_axis(mask, order[:, :, :2], True, axis=2)
        expected = weight * mask.reshape(weight.shape)
        np.testing.assert_array_equal(model.model.layers[1].get_submodule(name).weight.numpy(), expected)


def test_sparsegpt_loses_less_than_wanda_and_that_less_than_magnitude():
    """By the last hidden states, of a model whose inputs differ in size and hang together."""
    dense = tiny_model("llama", num_hidden_layers=3)
    for layer in dense.model.layers:
        layer.input_layernorm.weight.mul_(torch.linspace(0.1, 3, 64).square())
        layer.post_attention_layernorm.weight.mul_(torch.linspace(0.1, 3, 64).square())
    ids = torch.randint(4, 256, (32, 32), generator=torch.Generator().manual_seed(1))
    before, errors = dense.model(ids).last_hidden_state, []
    for method in ("sparsegpt", "wanda", "magnitude"):
        model = copy.deepcopy(dense)
        make_sparse(model, METHODS.get(method)(), Pattern.of("2:4"), ids)
        errors.append(float((model.model(ids).last_hidden_state - before).square().mean()))
    assert errors[0] < errors[1] < errors[2]


def test_the_door_writes_a_model_that_loads(tmp_path):
    inputs = {
        "model": write_tiny_folder(tmp_path / "model", "qwen2", dtype="bfloat16"),
        "calibration": tmp_path,
    }
    save_file({"input_ids": IDS}, tmp_path / "calibration.safetensors")
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        job = Job(SparsifyConfig(method="sparsegpt", settings={"damping": 0.1}))
        sparsify.body(job, inputs, tmp_path / run, silent)
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]
    assert len(weights[0]) == (tmp_path / "model" / "model.safetensors").stat().st_size
    loaded = load_model(tmp_path / "one" / "model", "bfloat16", "cpu")
    assert all(keeps_to(weight, Pattern.of("2:4")) for _, _, weight in matrices(loaded))
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["pattern_zeros_share"] == 0.5
    assert 0 < metrics["zeros_share"] < 0.5


def test_settings_and_method_decide_the_key():
    def key(**values):
        return sparsify.key(Job(SparsifyConfig.model_validate(values)), {})

    base = key(method="sparsegpt")
    assert base == key(method="sparsegpt", settings={"damping": 0.01})
    others = [key(method="wanda"), key(method="sparsegpt", pattern="4:8")]
    others += [key(method="sparsegpt", settings={"damping": 0.1})]
    assert len({base, *others}) == 4


@pytest.mark.parametrize(
    ("family", "widths", "changes", "says"),
    [
        ("mixtral", {}, {}, r"method 'wanda' looks at .* give sparsify\.method: magnitude$"),
        (
            "llama",
            {"intermediate_size": 36},
            {"pattern": "4:8"},
            r"4:8 needs inputs in groups of 8, but mlp\.down_proj\.weight of layer 0 has 36; give",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_a_weight_is_read(family, widths, changes, says):
    shape = shape_of(tiny_model(family, **widths).config.to_dict())
    with pytest.raises(BadInput, match=says):
        check_sparsity(SparsifyConfig.model_validate(changes), shape)


@pytest.mark.parametrize("method", ["flap", "magnitude", "ziplm"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_target_of_everything_removes_nothing(method, layout):
    """Also where the preset's repair would add biases, for which there is then no reason and no room."""
    model = tiny_model("llama")
    given = {
        "method": method,
        "units": ["ffn"],
        "layout": layout,
        "target": {"non_embedding_ratio": 1.0},
        "round_to": 8,
    }
    config = PruneConfig.model_validate(given)
    assert resolve(config).repair != "bias"
    plan, _ = make_plan(model, config, IDS)
    assert plan.reached == plan.dense
    assert all(len(layer.ffn) == 128 for layer in plan.layers)
