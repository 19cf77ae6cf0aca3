"""Least squares through the layers in order: against numpy, the dense form, and the error that it is for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from resprout.configs.errors import StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import Part, Units, anatomy
from resprout.tasks.models.forward import watch
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.repairs.least_squares import LeastSquares
from resprout.tasks.prune.statistics import Targets
from resprout.tasks.prune.surgery import apply
from tiny_models import layout_for, read_units, tiny_model

IDS = torch.randint(4, 256, (24, 24), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_targets_of_another_model_equal_a_stacked_numpy_problem(ridge, bias):
    """Inputs Z that have drifted from X, outputs of X; rows sqrt(lambda) (W' - W_K) below the data."""
    rng = np.random.default_rng(0)
    dense, weight, shift = rng.normal(size=(40, 6)), rng.normal(size=(3, 6)), rng.normal(size=3) * bias
    kept = [0, 2, 3, 5]
    drifted = (dense + 0.3 * rng.normal(size=dense.shape))[:, kept]
    damping = ridge * (drifted**2).sum(0).mean()
    left = np.vstack([drifted, np.sqrt(damping) * np.eye(4)])
    right = np.vstack([dense @ weight.T, np.sqrt(damping) * weight[:, kept].T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    tensors = {"reader.weight": torch.tensor(weight).float()}
    tensors |= {"reader.bias": torch.tensor(shift).float()} if bias else {}
    units = Units(Part("ffn", 6, (), "reader"), tensors)
    targets = LeastSquares("pruned").targets(4)
    outputs = torch.tensor(dense @ weight.T + shift).float()
    for z, y in zip(torch.tensor(drifted).float().split(7), outputs.split(7), strict=True):
        targets.update(z, y)
    solved = LeastSquares("pruned").solve(units, torch.tensor(kept), targets, ridge)
    np.testing.assert_allclose(solved.weight.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_bfloat16_targets_are_summed_in_float32():
    values = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = Targets(5)
    for batch in values.split(128):
        targets.update(batch[:, :5], batch[:, 5:])
    exact = values[:, 5:].double().T @ values[:, :5].double()
    torch.testing.assert_close(targets.outputs().double(), exact, rtol=1e-5, atol=1e-4)


def final_hidden(model):
    return model.base_model(IDS).last_hidden_state


def repaired(family, units, repair, settings, ridge):
    dense = tiny_model(family, num_hidden_layers=3)
    config = {"method": "wanda_sp", "units": units, "round_to": 8, **layout_for(family, units)}
    shape = shape_of(dense.config.to_dict())
    gone = sum(shape.counts(unit)[0] // 2 * shape.unit_params(unit) * 3 for unit in units[:1])
    target = {"params": shape.params - gone}
    plan, _ = make_plan(dense, PruneConfig.model_validate(config | {"target": target}), IDS)
    plan = plan.model_copy(update={"repair": repair, "repair_settings": settings})
    before = copy.deepcopy(dense.state_dict())
    pruned = copy.deepcopy(dense)
    apply(pruned, plan, IDS, ridge)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    return (final_hidden(pruned) - final_hidden(dense)).square().mean().item(), pruned


UNITS = [("ffn",), ("kv_groups",), ("heads",), ("ffn", "kv_groups"), ("ffn", "heads"), ("kv_groups", "heads")]


@pytest.mark.parametrize("units", UNITS)
def test_the_last_hidden_states_are_nearer_to_the_uncut_models(family, units):
    if not set(units) <= set(read_units(family)):
        pytest.skip(f"{family} models have no such units")
    none, _ = repaired(family, units, "none", {}, 0.0)
    sequential, _ = repaired(family, units, "least_squares", {"inputs": "pruned"}, 1e-3)
    assert sequential < 0.95 * none


def test_the_first_reader_is_that_of_the_dense_form_and_the_next_is_not():
    """Nothing is cut before the first attention; its own FFN already sees what attention lost."""
    _, apart = repaired("llama", ("ffn", "heads"), "least_squares", {"inputs": "dense"}, 0.0)
    _, sequential = repaired("llama", ("ffn", "heads"), "least_squares", {"inputs": "pruned"}, 0.0)
    first, same = apart.model.layers[0], sequential.model.layers[0]
    torch.testing.assert_close(
        first.self_attn.o_proj.weight, same.self_attn.o_proj.weight, rtol=1e-3, atol=1e-4
    )
    change = (first.mlp.down_proj.weight - same.mlp.down_proj.weight).abs().max()
    assert change > 1e-4


def reads(model, index, kind):
    """What a reader is given and what it gives."""
    seen = []
    reader = anatomy(model).layers[index].reader(kind)
    with watch(reader, seen.append):
        model(IDS)
    return seen[0], reader(seen[0])


def test_each_reader_solves_its_least_squares_on_what_the_pruned_model_gives_it():
    """Residuals against the uncut model's outputs are orthogonal to the inputs, in every layer."""
    dense = tiny_model("llama", num_hidden_layers=3)
    _, pruned = repaired("llama", ("ffn", "heads"), "least_squares", {"inputs": "pruned"}, 0.0)
    for index in range(3):
        for kind in ("heads", "ffn"):
            _, target = reads(dense, index, kind)
            inputs, outputs = reads(pruned, index, kind)
            residual = target - outputs
            slope = residual.double().T @ inputs.double()
            assert slope.abs().max() / (target.norm() * inputs.norm()) < 1e-5
            assert residual.norm() > 1e-3 * target.norm()


def test_layers_with_removed_sublayers_are_passed():
    dense = tiny_model("llama", num_hidden_layers=3)
    plan, _ = make_plan(
        dense,
        PruneConfig.model_validate(
            {"method": "wanda_sp", "units": ["ffn"], "target": {"params_ratio": 0.9}, "round_to": 8}
        ),
        IDS,
    )
    first, _, last = (layer.model_copy(update={"index": i}) for i, layer in enumerate(plan.layers))
    plan = plan.model_copy(
        update={
            "layers": (first.model_copy(update={"ffn": ()}), last.model_copy(update={"kv_groups": ()})),
            "repair": "least_squares",
            "repair_settings": {"inputs": "pruned"},
        }
    )
    apply(dense, plan, IDS)
    assert len(dense.model.layers) == 2
    assert dense(IDS).logits.isfinite().all()


def test_singular_inputs_say_what_to_do():
    targets = Targets(2)
    targets.update(torch.ones(4, 2), torch.ones(4, 1))
    units = Units(Part("ffn", 3, (), "reader"), {"reader.weight": torch.ones(1, 3)})
    with pytest.raises(StageFailed, match=r"singular.*raise prune\.ridge"):
        LeastSquares("pruned").solve(units, torch.tensor([0, 1]), targets, 0.0)
