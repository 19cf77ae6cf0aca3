"""The law of the loss against tokens, on curves that are known."""

from __future__ import annotations

import numpy as np
import pytest

from resprout.tasks.recover.curve import ENOUGH, EXPONENT, FEWEST, fit


def planted(tokens: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    return a + b * (tokens + c) ** -d


@pytest.mark.parametrize(("d", "count"), [(0.3, 20), (0.8, 12), (0.5, 7), (0.5, 5)])
def test_without_noise_it_finds_the_curve(d: float, count: int) -> None:
    tokens = np.linspace(0, 64_000, count)
    law = fit(tokens.tolist(), planted(tokens, 2.0, 40.0, 3000.0, d).tolist())
    assert law is not None
    assert law.exponent_is_fitted == (count >= ENOUGH)
    for times in (1, 2, 4):
        true = planted(np.array([64_000.0 * times]), 2.0, 40.0, 3000.0, d)[0]
        start = planted(np.array([0.0]), 2.0, 40.0, 3000.0, d)[0]
        assert law.at(64_000 * times).value == pytest.approx(true, abs=5e-3 * (start - true))


@pytest.mark.parametrize(("d", "count", "noise"), [(0.4, 20, 0.01), (0.7, 8, 0.003), (EXPONENT, 5, 0.01)])
def test_the_interval_holds_the_truth_in_ninety_of_a_hundred_draws(
    d: float, count: int, noise: float
) -> None:
    tokens = np.linspace(0, 100_000, count)
    curve = (2.2, 0.9 * 20_000**d, 20_000.0, d)
    held = {1: 0, 2: 0, 4: 0, "gain": 0}
    known = {times: planted(np.array([1e5 * times]), *curve)[0] for times in (1, 2, 4)}
    for seed in range(100):
        draw = np.random.default_rng(seed).normal(0, noise, count)
        law = fit(tokens.tolist(), (planted(tokens, *curve) + draw).tolist())
        assert law is not None
        for times in (1, 2, 4):
            found = law.at(1e5 * times)
            assert found.low <= found.value <= found.high
            held[times] += found.low <= known[times] <= found.high
        gain = law.gain(2e5)
        held["gain"] += gain.low <= known[1] - known[2] <= gain.high
    assert min(held.values()) >= 90, held


def test_an_interval_is_as_narrow_as_the_noise_lets_it_be() -> None:
    tokens = np.linspace(0, 100_000, 20)
    widths = []
    for noise in (0.001, 0.03):
        draw = np.random.default_rng(3).normal(0, noise, 20)
        law = fit(tokens.tolist(), (planted(tokens, 2.2, 300.0, 20_000.0, 0.6) + draw).tolist())
        assert law is not None
        found = law.gain(2e5)
        widths.append(found.high - found.low)
    assert widths[0] < 0.02 < widths[1]


def test_a_loss_that_stands_still_gains_nothing() -> None:
    tokens = np.linspace(0, 1000, 12)
    law = fit(tokens.tolist(), (2 + np.random.default_rng(0).normal(0, 0.002, 12)).tolist())
    assert law is not None
    assert law.gain(2000).low < 0 < law.gain(2000).high


def test_few_points_say_nothing() -> None:
    assert fit([0, 1, 2], [3.0, 2.0, 1.5]) is None
    assert fit([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.5, 1.3]) is not None
    assert FEWEST == 4
