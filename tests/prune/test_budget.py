"""The budget is spent as well as brute force spends it, in parameters or in milliseconds of a table."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.allocators.dynamic_programming import DynamicProgramming
from resprout.tasks.prune.budget import best_within
from resprout.tasks.prune.interfaces import Costs, Request
from tiny_models import column

SHAPE = Shape("mistral", 10, 10, 2, (4, 4), (2, 2), (1, 1), config={"tie_word_embeddings": True})
"""A channel holds 30 parameters, a group 80; fixed: embeddings 100, norms 50; 710 in all."""


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.integers(1, 40, size=4)).astype(float) for _ in range(5)]
    losses = [np.sort(rng.random(4))[::-1] for _ in range(5)]
    limit = float(sum(one[1] for one in costs))
    best = min(
        (sum(loss[i] for loss, i in zip(losses, chosen, strict=True)), chosen)
        for chosen in itertools.product(range(4), repeat=5)
        if sum(cost[i] for cost, i in zip(costs, chosen, strict=True)) <= limit
    )
    chosen = best_within(losses, costs, limit)
    assert sum(cost[i] for cost, i in zip(costs, chosen, strict=True)) <= limit
    assert sum(loss[i] for loss, i in zip(losses, chosen, strict=True)) == pytest.approx(best[0])


def test_what_nothing_fits_into_is_refused():
    with pytest.raises(BadInput, match=r"leaves no choice of widths.*raise the target"):
        best_within([np.array([1.0])] * 2, [np.array([6.0])] * 2, 10.0)


def test_parameters_by_hand():
    """Scores 1, 2, 3, 9 and 4, 5, 6, 7; 90 parameters are to go, which are three channels.

    The cheapest three of all are 1, 2 and 3 of layer 0, for 6; any of layer 1 costs 4 or more.
    """
    scores = [{"ffn": column(3, 9, 1, 2)}, {"ffn": column(4, 5, 6, 7)}]
    request = Request(SHAPE, limit=710 - 90, kinds=("ffn",), round_to=1)
    assert DynamicProgramming().allocate(request, scores).ffn == (1, 4)


def test_milliseconds_by_hand():
    """A channel takes 1 ms in layer 0 and 3 ms in layer 1; of 16 ms 11 may stay.

    Removing 1 and 2 of layer 0 and the 4 of layer 1 saves 5 for a loss of 7; 4 and 5 of layer 1 save 6 for 9.
    """
    scores = [{"ffn": column(3, 9, 1, 2)}, {"ffn": column(4, 5, 6, 7)}]
    costs = Costs(11.0, lambda kind, layer, count: count * (1.0, 3.0)[layer])
    request = Request(SHAPE, limit=710, kinds=("ffn",), round_to=1, costs=costs)
    assert DynamicProgramming().allocate(request, scores).ffn == (2, 3)


@pytest.mark.parametrize(("cumulative", "widths"), [(True, (1, 4)), (False, (2, 3))])
def test_errors_of_levels_are_not_added_up(cumulative, widths):
    """Three channels must go; with 1, 2, 3 gone layer 0 errs by 0.1, 0.2, 0.25 and layer 1 by 0.1, 0.5, 0.6.

    Three of layer 0 cost 0.25, two and one of layer 1 0.3. Were each channel's score a loss of its own these
    would be 0.55 and 0.4.
    """
    scores = [{"ffn": column(0.25, 1.0, 0.1, 0.2)}, {"ffn": column(0.1, 0.5, 0.6, 1.0)}]
    request = Request(SHAPE, limit=710 - 90, kinds=("ffn",), round_to=1, cumulative=cumulative)
    assert DynamicProgramming().allocate(request, scores).ffn == widths


@pytest.mark.parametrize(("cumulative", "heads"), [(True, (1, 2)), (False, (2, 1))])
def test_heads_that_leave_together_err_as_the_last_of_them(cumulative, heads):
    """Of two groups of two heads a layer loses one each: 0.15 or 0.2 cumulative; added up 0.29 or 0.21."""
    scores = [{"heads": column(0.14, 0.5, 0.6, 0.15)}, {"heads": column(0.01, 0.5, 0.2, 0.6)}]
    shape, costs = replace(SHAPE, heads_per_group=(2, 2)), Costs(3.0, lambda kind, layer, count: count)
    request = Request(shape, 10_000, ("heads",), round_to=1, costs=costs, cumulative=cumulative)
    assert DynamicProgramming().allocate(request, scores).heads_per_group == heads
