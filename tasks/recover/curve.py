"""Where a longer recovery would go: a power law of the loss on the held-out slice against tokens trained.

The law is L(t) = a + b * (t + c)^-d, the form of the scaling laws in data (2203.15556, eq. 10) with an offset
c, the tokens that the pruned start is worth. For given c and d it is linear in a and b, so that a grid over
c and d holds every curve of the family: there are no starting values and no local minima.

The interval is that of the profile likelihood: all values of curves whose sum of squared residuals is at most
(1 + F / (n - p)) times the least, F the 95 % quantile of F(1, n - p) for n points and p parameters. Where
few points leave c and d open it is as wide as the curves that fit, which the covariance at the best
one would not be. It holds residuals for independent and of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 4
"""Points below which no law is fitted."""
ENOUGH = 7
"""Points from which on the exponent is fitted too."""
EXPONENT = 0.5
"""The exponent where points are fewer; data laws of pre-training have 0.28 to 0.5."""
EXPONENTS = np.geomspace(0.05, 4.0, 181)
OFFSETS = np.geomspace(1e-3, 30.0, 241)
"""Of the tokens of the last point."""
COVERAGE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Law:
    """All curves of the family that are in the grid, each by its least squares, with how well they fit."""

    tokens: float
    """Tokens of the last point, the unit of t."""
    points: int
    exponents: Array
    offsets: Array
    slopes: Array
    floors: Array
    squares: Array
    """Sum of squared residuals of each curve."""
    means: Array
    """Mean of (t + c)^-d over the points."""
    spreads: Array
    """Sum of its squared deviations from that."""
    limit: float
    """Greatest sum of squares of a curve that fits."""

    @property
    def exponent(self) -> float:
        """That of the best curve."""
        return float(self.exponents[self._best])

    @property
    def exponent_is_fitted(self) -> bool:
        """Whether there were points enough for it."""
        return self.points >= ENOUGH

    def at(self, tokens: float) -> Estimate:
        """The loss after so many tokens."""
        powers = self._powers(tokens)
        return self._estimate(self.floors + self.slopes * powers, 1 / self.points, powers - self.means)

    def gain(self, tokens: float) -> Estimate:
        """The fall of the loss from the last point to `tokens` tokens; below 0 where it rises."""
        steps = self._powers(self.tokens) - self._powers(tokens)
        return self._estimate(self.slopes * steps, 0.0, steps)

    @property
    def _best(self) -> int:
        return int(np.argmin(self.squares))

    def _powers(self, tokens: float) -> Array:
        return (tokens / self.tokens + self.offsets) ** -self.exponents

    def _estimate(self, values: Array, floor: float, slope: Array) -> Estimate:
        """The best curve's value, and the span of all that fit.

        Of one curve's c and d, moving the value by x adds x^2 / v to the squares, with v = `floor` +
        `slope`^2 / spread its variance in units of the residuals'.
        """
        fits = self.squares <= self.limit
        variance = floor + slope**2 / self.spreads
        reach = np.sqrt((self.limit - self.squares[fits]) * variance[fits])
        low, high = (values[fits] - reach).min(), (values[fits] + reach).max()
        return Estimate(float(values[self._best]), float(low), float(high))


def fit(tokens: Sequence[float], losses: Sequence[float]) -> Law | None:
    """The law through losses after so many tokens, in rising order; None of fewer than FEWEST points."""
    count = len(tokens)
    if count < FEWEST or count != len(losses):
        return None
    full = count >= ENOUGH
    from scipy.special import fdtri

    grid = np.meshgrid(EXPONENTS if full else [EXPONENT], OFFSETS, indexing="ij")
    exponents, offsets = (one.ravel() for one in grid)
    at, measured = np.asarray(tokens, float) / tokens[-1], np.asarray(losses, float)
    powers = (at[None, :] + offsets[:, None]) ** -exponents[:, None]
    means = powers.mean(1)
    centred = powers - means[:, None]
    spreads = (centred**2).sum(1)
    slopes = centred @ measured / spreads
    floors = measured.mean() - slopes * means
    squares = ((measured - floors[:, None] - slopes[:, None] * powers) ** 2).sum(1)
    free = count - (4 if full else 3)
    limit = squares.min() * (1 + fdtri(1, free, COVERAGE) / free)
    return Law(
        float(tokens[-1]), count, exponents, offsets, slopes, floors, squares, means, spreads, float(limit)
    )
