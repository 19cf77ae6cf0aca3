"""Second-order removal against brute force: every structure tried, the rest solved anew by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import Part, Units
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.criteria.obs import Obs, rising
from resprout.tasks.prune.scoring import best_units, score_units
from resprout.tasks.prune.statistics import Gram
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(4))


def scored(weight, inputs, size=1, blocks=1, damping=0.0):
    part = Part("ffn", weight.shape[1] // size, (), "reader", size, blocks=blocks)
    gram = Gram(weight.shape[1])
    gram.update(torch.as_tensor(inputs, dtype=torch.float32))
    return Obs(damping).score(
        Units(part, {"reader.weight": torch.as_tensor(weight, dtype=torch.float32)}), gram
    )


def error_without(weight, inputs, gone, damping):
    """Least squared error of the outputs (and of the damped weights) once the columns `gone` are 0."""
    kept = [column for column in range(weight.shape[1]) if column not in gone]
    root = np.sqrt(damping)
    data = np.vstack([inputs, root * np.eye(weight.shape[1])])
    target = data @ weight.T
    solved = np.linalg.lstsq(data[:, kept], target, rcond=None)[0] if kept else np.zeros((0, len(weight)))
    return ((target - data[:, kept] @ solved) ** 2).sum()


@pytest.mark.parametrize("damping", [0.0, 0.05])
@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (2, 1), (3, 1), (2, 2), (1, 3)])
def test_each_removal_is_the_one_brute_force_finds(size, blocks, damping):
    rng = np.random.default_rng(size)
    inputs, weight = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(5, 12))
    scores = scored(weight, inputs, size, blocks, damping)[:, 0].double().numpy()
    order = np.argsort(scores, kind="stable")
    ridge = damping * (inputs**2).sum(0).mean()
    whole = error_without(weight, inputs, range(12), ridge)
    gone, units = [], 12 // size
    for place in range(units):
        rounds = [sum(one // (units // blocks) == block for one in gone) for block in range(blocks)]
        tried = {
            unit: error_without(
                weight,
                inputs,
                [one * size + k for one in (*gone, unit) for k in range(size)],
                ridge,
            )
            for unit in range(units)
            if unit not in gone and rounds[unit // (units // blocks)] == min(rounds)
        }
        best = min(tried, key=tried.get)
        assert order[place] == best
        np.testing.assert_allclose(scores[best], tried[best] / whole, rtol=1e-4)
        gone.append(best)
    np.testing.assert_allclose(scores.max(), 1.0, rtol=1e-5)


def test_panels_change_nothing():
    """150 features are three panels: the errors by level are those of the kept sets, solved anew."""
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(400, 150)) @ rng.normal(size=(150, 150)), rng.normal(size=(7, 150))
    scores = scored(weight, inputs, damping=0.01)
    ridge = 0.01 * (inputs**2).sum(0).mean()
    whole = error_without(weight, inputs, range(150), ridge)
    order = scores[:, 0].argsort().tolist()
    for gone in (1, 63, 64, 65, 100, 128, 140, 149):
        expected = error_without(weight, inputs, order[:gone], ridge) / whole
        np.testing.assert_allclose(scores[order[gone - 1], 0].item(), expected, rtol=1e-3)
        assert best_units(scores, 150 - gone) == sorted(order[gone:])


def test_a_copied_feature_goes_first_although_its_weight_is_large():
    """Feature 2 equals feature 0: either goes at no cost, by the other; single scores would keep both."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(50, 3))
    inputs[:, 2] = inputs[:, 0]
    scores = scored(np.array([[5.0, 0.5, 5.0]]), inputs, damping=1e-6)
    assert scores[:, 0].argmin() in (0, 2)
    assert scores.min() < 1e-5
    assert scores[:, 0].argsort()[1] == 1, "the copy's twin is now worth all of both"


def test_a_feature_that_is_always_zero_goes_first_whatever_its_weight():
    inputs = np.random.default_rng(2).normal(size=(50, 3))
    inputs[:, 1] = 0
    scores = scored(np.array([[0.1, 1000.0, 1.0]]), inputs, damping=0.01)
    assert scores[1, 0] == 0
    assert scores[:, 0].argsort().tolist() == [1, 0, 2]


def test_equal_errors_still_have_an_order():
    assert rising(torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0])).diff().min() > 0
    assert rising(torch.tensor([0.5, 1.0, 2.0])).tolist() == [0.5, 1.0, 2.0]


def test_too_few_tokens_without_damping_are_refused_and_damping_is_a_setting():
    with pytest.raises(StageFailed, match=r"4 calibration tokens for 6 features with damping 0\.0.*damping"):
        scored(np.ones((2, 6)), np.random.default_rng(0).normal(size=(4, 6)))
    assert scored(np.ones((2, 6)), np.random.default_rng(0).normal(size=(4, 6)), damping=0.1).isfinite().all()
    with pytest.raises(BadInput, match=r"'obs' has damping: -0\.1; give at least 0"):
        Obs(-0.1)
    base = {"criterion": "obs", "target": {"params_ratio": 0.9}}
    assert resolve(PruneConfig.model_validate(base)).criterion_settings == {"damping": 0.01}
    with pytest.raises(BadInput, match="damping: 'much'; give a number"):
        resolve(PruneConfig.model_validate(base | {"criterion_settings": {"damping": "much"}}))


def test_scores_of_a_model_by_unit():
    kinds = ("ffn", "kv_groups", "heads")
    for by_kind in score_units(tiny_model("llama"), Obs(), kinds, IDS):
        assert {kind: tuple(one.shape) for kind, one in by_kind.items()} == {
            "ffn": (128, 1), "kv_groups": (2, 1), "heads": (4, 1),
        }  # fmt: skip
        for one in by_kind.values():
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.max(), torch.tensor(1.0), rtol=1e-4, atol=0)
