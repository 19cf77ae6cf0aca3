"""The drop against the dense model: by hand, against the likelihood itself, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from resprout.tasks.evaluate.drop import Drop, drop_of, not_worse, score_statistic

DRAWS = 1000


def of(lost: int, won: int, items: int) -> Drop:
    return Drop(items, 0.5 + lost / items, 0.5 + won / items, lost, won)


def test_mcnemar_by_hand() -> None:
    # 1 of 6 changes in one direction: 2 * (1 + 6) / 2^6.
    assert of(5, 1, 100).p == pytest.approx(14 / 64)
    assert of(0, 0, 100).p == 1.0
    assert of(5, 1, 100).p == of(1, 5, 100).p


def test_scores_of_the_same_items_are_compared_item_by_item() -> None:
    found = drop_of([1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0, 0.0])
    assert (found.items, found.lost, found.won, found.error) == (5, 2, 1, None)
    assert (found.dense, found.other) == (0.6, 0.4)
    assert found.value == pytest.approx(0.2)


def test_scores_between_none_and_all_have_students_interval() -> None:
    found = drop_of([0.5, 1.0, 0.25], [0.25, 1.0, 0.25])
    # Gaps 0.25, 0, 0: error 0.25 / 3; Student's quantile with two degrees of freedom at 0.05 is 2.91999.
    assert found.error == pytest.approx(0.25 / 3)
    assert found.upper(0.05) == pytest.approx(0.25 / 3 * (1 + 2.91999), rel=1e-5)
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(("lost", "won", "items"), [(9, 4, 60), (0, 0, 12), (3, 9, 40), (30, 0, 200)])
def test_the_statistic_uses_the_most_likely_proportions(lost: int, won: int, items: int) -> None:
    for drop in (0.01, 0.05, 0.2):

        def unlikely(share: float, drop: float = drop) -> float:
            parts = ((lost, share + drop), (won, share), (items - lost - won, 1 - 2 * share - drop))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

        best = minimize_scalar(
            unlikely, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-12}
        )
        variance = items * (2 * best.x + drop * (1 - drop))
        expected = (lost - won - items * drop) / math.sqrt(variance)
        assert float(score_statistic(lost, won, items, drop)) == pytest.approx(expected, rel=1e-4)


def test_an_interval_is_the_same_from_both_sides_and_holds_the_value() -> None:
    ours, theirs = of(12, 5, 150), of(5, 12, 150)
    assert ours.interval == pytest.approx((-theirs.interval[1], -theirs.interval[0]))
    assert ours.interval[0] < ours.value < ours.interval[1]
    ends = [float(score_statistic(12, 5, 150, end)) for end in (ours.interval[1], ours.upper(0.05))]
    assert ends == pytest.approx([-1.959964, -1.644854], abs=1e-4), "bounds are where the test just rejects"


def test_no_change_among_few_items_proves_little() -> None:
    assert of(0, 0, 12).upper(0.05) == pytest.approx(1.6449**2 / (12 + 1.6449**2), rel=1e-3)
    assert of(0, 0, 1).upper(0.05) == 1.0
    assert of(20, 0, 20).upper(0.05) == 1.0


@pytest.mark.parametrize("margin", [0.03, 0.05])
@pytest.mark.parametrize("error_rate", [0.05, 0.2])
@pytest.mark.parametrize(("items", "won"), [(300, 0.02), (1319, 0.05), (1319, 0.0)])
def test_a_planted_drop_is_caught_at_the_stated_rate(
    margin: float, error_rate: float, items: int, won: float
) -> None:
    draw = np.random.default_rng(17)
    counts = draw.multinomial(items, [won + margin, won, 1 - 2 * won - margin], size=DRAWS)
    passed = not_worse(counts[:, 0], counts[:, 1], items, margin, error_rate)
    noise = math.sqrt(error_rate * (1 - error_rate) / DRAWS)
    assert passed.mean() <= error_rate + 3 * noise
    assert passed.mean() >= error_rate / 4, "a bound that never passes catches everything"
    for (lost, gained, _), one in zip(counts[:40].tolist(), passed[:40], strict=True):
        assert (of(lost, gained, items).upper(error_rate) < margin) == one


def test_a_model_that_lost_nothing_passes_by_the_items_that_there_are() -> None:
    draw = np.random.default_rng(17)
    power = {}
    for items in (300, 1319, 5000):
        counts = draw.multinomial(items, [0.05, 0.05, 0.9], size=DRAWS)
        power[items] = float(not_worse(counts[:, 0], counts[:, 1], items, 0.03, 0.05).mean())
    # Of 300 items too few to tell, of 1,319 nearly always enough.
    assert power[300] < 0.6
    assert power[1319] > 0.9
    assert power[5000] == 1.0
