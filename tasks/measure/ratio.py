"""Ratio of a model's speed to the dense model's over rounds in which both were timed, with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SUFFIXES = ("_ratio", "_ratio_low", "_ratio_high")
"""Of a speed's metric: the median of the rounds' ratios to dense, and the ends of its interval."""
COVERAGE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios, and the ends of an interval of the true median."""

    median: float
    low: float
    high: float

    @property
    def different(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1.0 <= self.high

    def __str__(self) -> str:
        """As tables show it."""
        shown = f"x{self.median:.2f}" if self.different else "no difference"
        return f"{shown}, x{self.low:.2f}-{self.high:.2f}"

    def metrics(self, name: str) -> dict[str, float]:
        """As metrics beside the one called `name`."""
        values = (self.median, self.low, self.high)
        return {f"{name}{suffix}": value for suffix, value in zip(SUFFIXES, values, strict=True)}


def metrics_of(model: str, measured: Mapping[str, float]) -> dict[str, float]:
    """One model's metrics among those of a measurement, which are called <model>.<metric>."""
    parts = {name: name.rpartition(".") for name in measured}
    return {metric: measured[name] for name, (owner, _, metric) in parts.items() if owner == model}


def ratio_in(metrics: Mapping[str, float], name: str) -> Ratio | None:
    """The ratio among a model's metrics; None where the speed `name` was held against none."""
    values = [metrics.get(f"{name}{suffix}") for suffix in SUFFIXES]
    known = [value for value in values if value is not None]
    return Ratio(*known) if len(known) == len(SUFFIXES) else None


def ratio_of(dense: Sequence[float], other: Sequence[float]) -> Ratio:
    """Ratio of speeds from the seconds of the same work, one pair a round.

    The interval is that of order statistics (David and Nagaraja, Order Statistics, 7.1), which supposes
    nothing of how the times are spread. Below 6 rounds none covers 0.95: it is stretched to hold 1.
    """
    ratios = sorted(ours / theirs for ours, theirs in zip(dense, other, strict=True))
    cut = _outside(len(ratios))
    low, high = ratios[cut], ratios[-1 - cut]
    if coverage(len(ratios)) < COVERAGE:
        # Too few rounds to call anything a difference.
        low, high = min(low, 1.0), max(high, 1.0)
    return Ratio(statistics.median(ratios), low, high)


def coverage(rounds: int) -> float:
    """How often the interval of so many rounds holds the true median; less than 0.95 below 6 rounds."""
    return _covered(rounds, _outside(rounds))


def _outside(rounds: int) -> int:
    """How many ratios lie outside the interval at each end: as many as leave it COVERAGE, else none."""
    cut = 0
    while cut + 1 < (rounds + 1) // 2 and _covered(rounds, cut + 1) >= COVERAGE:
        cut += 1
    return cut


def _covered(rounds: int, cut: int) -> float:
    """1 - 2 P(at most `cut` of the rounds lie above the median), each with probability 1/2."""
    return 1 - 2 * sum(math.comb(rounds, above) for above in range(cut + 1)) / 2**rounds
