"""Masks against all masks of a group, SparseGPT against inverses taken anew for every column."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.prune.statistics import Gram, Moments
from resprout.tasks.sparsify.layers import best_mask, keeps_to
from resprout.tasks.sparsify.methods.sparsegpt import solve
from resprout.tasks.sparsify.pattern import METHODS, Pattern

TWO, FOUR = Pattern.of("2:4"), Pattern.of("4:8")


def data(tokens=80, inputs=16, outputs=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, inputs)) @ rng.normal(size=(inputs, inputs))
    return x, rng.normal(size=(outputs, inputs))


def gram_of(x):
    gram = Gram(x.shape[1])
    for batch in torch.as_tensor(x, dtype=torch.float32).split(33):
        gram.update(batch)
    return gram


@pytest.mark.parametrize(("pattern", "masks"), [(TWO, 6), (FOUR, 70)])
@pytest.mark.parametrize("rule", ["magnitude", "wanda"])
def test_no_mask_of_a_group_keeps_more(pattern, masks, rule):
    x, w = data()
    weight = torch.tensor(w)
    moments = Moments(16)
    moments.update(torch.tensor(x))
    expected = np.abs(w) * (1 if rule == "magnitude" else np.sqrt((x**2).sum(0)))
    scores = METHODS.get(rule)().scores(weight, moments)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)
    mask = best_mask(scores, pattern).numpy()
    every = list(combinations(range(pattern.group), pattern.keep))
    assert len(every) == masks
    for row in range(len(w)):
        for start in range(0, 16, pattern.group):
            group = expected[row, start : start + pattern.group]
            best = max(every, key=lambda kept, group=group: group[list(kept)].sum())
            assert tuple(np.flatnonzero(mask[row, start : start + pattern.group])) == best


def test_masks_by_hand_and_ties_to_the_lower_index():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])
    assert best_mask(scores, TWO).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    assert best_mask(scores, FOUR).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert keeps_to(scores * best_mask(scores, TWO), TWO)
    assert not keeps_to(scores, TWO)


def reference(w, hessian, pattern):
    """Column by column with the inverse of what is left of H, one row at a time."""
    w = w.copy()
    for row in w:
        for column in range(len(row)):
            inverse = np.linalg.inv(hessian[column:, column:])
            if column % pattern.group == 0:
                cost = [
                    row[column + k] ** 2 / np.linalg.inv(hessian[column + k :, column + k :])[0, 0]
                    for k in range(pattern.group)
                ]
                gone = set(np.argsort(cost, kind="stable")[: pattern.group - pattern.keep])
            if column % pattern.group in gone:
                row[column:] -= row[column] / inverse[0, 0] * inverse[0]
                row[column] = 0
    return w


@pytest.mark.parametrize("pattern", [TWO, FOUR])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_sparsegpt_equals_exact_inverses(pattern, damping):
    x, w = data()
    hessian = x.T @ x
    hessian += damping * np.diag(hessian).mean() * np.eye(16)
    found = solve(torch.tensor(w), gram_of(x), pattern, damping)
    expected = reference(w, hessian, pattern)
    np.testing.assert_array_equal(found.numpy() != 0, expected != 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-3)
    assert keeps_to(found, pattern)


@pytest.mark.parametrize("columns", [132, 256])
def test_blocks_change_nothing(columns, monkeypatch):
    x, w = data(tokens=600, inputs=columns, outputs=4, seed=2)
    room = "resprout.tasks.sparsify.methods.sparsegpt.BLOCK"
    found = solve(torch.tensor(w), gram_of(x), TWO)
    monkeypatch.setattr(room, 4096)
    torch.testing.assert_close(solve(torch.tensor(w), gram_of(x), TWO), found, rtol=1e-3, atol=1e-3)


def test_adjusting_lies_between_the_mask_alone_and_its_exact_least_squares():
    x, w = data(tokens=400, inputs=32, outputs=8, seed=3)

    def error(one):
        return ((x @ (w - one).T) ** 2).sum()

    solved = solve(torch.tensor(w), gram_of(x), TWO, 1e-4).double().numpy()
    exact = np.zeros_like(w)
    for row, kept in enumerate(solved != 0):
        exact[row, kept] = np.linalg.lstsq(x[:, kept], x @ w[row], rcond=None)[0]
    assert error(exact) <= error(solved) * (1 + 1e-6)
    assert error(solved) < error(w * (solved != 0))


def test_inputs_that_are_always_zero_lose_their_weights():
    x, w = data()
    x[:, 3] = 0
    found = solve(torch.tensor(w), gram_of(x), TWO)
    assert found[:, 3].tolist() == [0.0] * 5
    assert found.isfinite().all()
    assert solve(torch.tensor(w).bfloat16(), gram_of(x), TWO).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(BadInput, match="the pattern '4:2' is not kept:group"):
        Pattern.of("4:2")
    with pytest.raises(BadInput, match="10 inputs does not fall into groups of 4"):
        best_mask(torch.ones(2, 10), TWO)
    x, w = data(tokens=9)
    with pytest.raises(StageFailed, match=r"9 calibration tokens for 16 features with damping 0\.0"):
        solve(torch.tensor(w), gram_of(x), TWO, 0.0)
