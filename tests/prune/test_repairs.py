"""Repairs by hand, against numpy, and on what they are for: the error of a layer's output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resprout.configs.errors import StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import Part, Units, anatomy
from resprout.tasks.models.forward import watch
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.repairs.bias import Bias
from resprout.tasks.prune.repairs.least_squares import LeastSquares
from resprout.tasks.prune.repairs.none import NoRepair
from resprout.tasks.prune.surgery import apply
from tiny_models import layout_for, read_units, tiny_model

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(2))


def units_with(weight, bias=None):
    """A reader of weight [outputs, features], one feature a unit."""
    tensors = {"reader.weight": torch.tensor(weight)}
    if bias is not None:
        tensors["reader.bias"] = torch.tensor(bias)
    return Units(Part("ffn", tensors["reader.weight"].shape[1], (), "reader"), tensors)


def repaired(repair, units, kept, inputs, ridge=0.0):
    statistic = repair.statistic(units.weight.shape[1])
    if statistic is not None:
        for batch in torch.as_tensor(inputs, dtype=torch.float32).split(2):
            statistic.update(batch)
    return repair.repair(units, torch.tensor(kept), statistic, ridge)


def test_none_by_hand():
    result = repaired(NoRepair(), units_with([[1.0, 2.0, 3.0]]), [0, 2], None)
    assert result.weight.tolist() == [[1.0, 3.0]]
    assert result.bias is None


def test_bias_by_hand():
    """Feature 1 (mean 4) goes: outputs gain 2 * 4 and -1 * 4, beside the bias 0.5 that is there."""
    inputs = [[1, 3], [2, 5], [3, 4]]
    result = repaired(Bias(), units_with([[1.0, 2.0], [1.0, -1.0]]), [0], inputs)
    assert result.weight.tolist() == [[1.0], [1.0]]
    assert result.bias.tolist() == [8.0, -4.0]
    result = repaired(Bias(), units_with([[1.0, 2.0], [1.0, -1.0]], [0.5, 0.5]), [0], inputs)
    assert result.bias.tolist() == [8.5, -3.5]


@pytest.mark.parametrize(("ridge", "expected"), [(0.0, 1.4), (1 / 3, 1 + 1 / 3)])
def test_least_squares_by_hand(ridge, expected):
    """Tokens (1, 1) and (2, 0): G = [[5, 1], [1, 1]], mean diagonal 3. Weight (1, 2), keep feature 0.

    W' = 1 + 2 * 1 / (5 + 3 ridge): 1.4 without damping, 1 + 2/6 with ridge 1/3.
    """
    result = repaired(LeastSquares(), units_with([[1.0, 2.0]]), [0], [[1, 1], [2, 0]], ridge)
    torch.testing.assert_close(result.weight, torch.tensor([[expected]]))


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_least_squares_equals_a_stacked_numpy_problem(ridge):
    """Rows sqrt(lambda) (W' - W_K) below the data: ordinary least squares gives the same W'."""
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(3, 6))
    kept = [0, 2, 3, 5]
    damping = ridge * (inputs**2).sum(0).mean()
    left = np.vstack([inputs[:, kept], np.sqrt(damping) * np.eye(4)])
    right = np.vstack([inputs @ weight.T, np.sqrt(damping) * weight[:, kept].T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    units = units_with(weight.astype(np.float32))
    result = repaired(LeastSquares(), units, kept, inputs, ridge)
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_least_squares_that_removes_nothing_changes_nothing():
    result = repaired(LeastSquares(), units_with([[1.0, 2.0]]), [0, 1], [[1, 1], [2, 0]], 0.5)
    assert result.weight.tolist() == [[1.0, 2.0]]


def test_singular_gram_says_what_to_do():
    inputs = [[1, 1, 3]] * 4
    with pytest.raises(StageFailed, match=r"singular.*raise prune\.ridge"):
        repaired(LeastSquares(), units_with([[1.0, 2.0, 1.0]]), [0, 1], inputs)
    assert (
        repaired(LeastSquares(), units_with([[1.0, 2.0, 1.0]]), [0, 1], inputs, 0.1).weight.isfinite().all()
    )


def test_overflow_says_what_to_do():
    with pytest.raises(StageFailed, match=r"not finite.*bfloat16 or float32"):
        repaired(LeastSquares(), units_with([[1.0, 2.0]]), [0], [[float("inf"), 1], [2, 0]], 0.1)


def reader_inputs(model):
    seen = {}
    for index, layer in enumerate(anatomy(model).layers):
        for kind in set(read_units(layer.family.model_type)) & {"ffn", "kv_groups"}:
            with watch(layer.reader(kind), lambda x, key=(index, kind): seen.update({key: x})):
                model(IDS)
    return seen


@pytest.mark.parametrize("units", [("ffn",), ("kv_groups",)])
def test_repairs_lower_the_error_of_every_layer(family, units):
    """On the inputs of the uncut model: least squares below bias (where one can be) below none."""
    if not set(units) <= set(read_units(family)):
        pytest.skip(f"{family} models have no such units")
    dense = tiny_model(family)
    shape = shape_of(dense.config.to_dict())
    gone = sum(count // 2 * shape.unit_params(units[0]) for count in shape.counts(units[0]))
    target = {"params": shape.params - gone}
    config = {"method": "wanda_sp", "units": units, "target": target, "round_to": 8}
    config |= layout_for(family, units)
    inputs = reader_inputs(dense)
    kind = units[0]
    errors = {}
    for repair in ("none", "bias", "least_squares"):
        if repair == "bias" and family not in ("llama", "opt", "gpt2", "gpt_neox"):
            continue
        model = tiny_model(family)
        plan, _ = make_plan(model, PruneConfig.model_validate(config | {"repair": "none"}), IDS)
        plan = plan.model_copy(update={"repair": repair})
        apply(model, plan, IDS, ridge=1e-4)
        errors[repair] = []
        for index, (before, after) in enumerate(
            zip(anatomy(dense).layers, anatomy(model).layers, strict=True)
        ):
            part = before.part(kind)
            kept = part.features(getattr(plan.layers[index], kind))
            x = inputs[index, kind]
            output = after.reader(kind)(x[:, kept])
            errors[repair].append((before.reader(kind)(x) - output).square().mean().item())
    for none, solved in zip(errors["none"], errors["least_squares"], strict=True):
        assert solved < 0.99 * none
    for none, shifted in zip(errors["none"], errors.get("bias", ()), strict=False):
        assert shifted < none
