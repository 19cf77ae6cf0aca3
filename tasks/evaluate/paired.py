"""Compare two models on the same held-out windows and questions: ratios and changes with intervals.

Windows differ far more from each other than two models do on one window, so models are compared window by
window and question by question. Intervals are of 95 % and suppose that windows, or questions, are drawn
independently of each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resprout.tasks.measure.ratio import COVERAGE, Ratio

FILE = "samples.json"
CHANGES = ("_change", "_change_low", "_change_high")
"""Of an accuracy's metric: what it gained over the dense model's, and the ends of its interval."""
MEAN = "zero_shot_mean_acc"
CUT = "_cut"
"""Ends the metric that says which share of a task's written answers was cut."""


def compared(dense: Path, other: Path) -> dict[str, float]:
    """Metrics that compare a model's scores with the dense one's; none of a folder without samples.

    `<perplexity>_ratio`, `_ratio_low`, `_ratio_high`, and `<accuracy>_change`, `_change_low`, `_change_high`.
    """
    if not all((folder / FILE).is_file() for folder in (dense, other)):
        return {}
    ours, theirs, details = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (dense / FILE, other / FILE, other / "details.json")
    )
    return compare(ours, theirs, details)


def compare(
    dense: Mapping[str, Any], other: Mapping[str, Any], details: Mapping[str, Any]
) -> dict[str, float]:
    """As `compared`, of the samples of both and the other's details."""
    found = perplexity_ratio(dense["windows"], other["windows"]).metrics(details["perplexity"]["metric"])
    changes = {
        name: _change([b - a for a, b in zip(dense["right"][name], right, strict=True)])
        for name, right in other["right"].items()
        if name in dense["right"]
    }
    averaged = [changes[name] for name in details.get("averaged", ()) if name in changes]
    if averaged:
        means, errors, items = zip(*averaged, strict=True)
        error = math.hypot(*errors) / len(errors)
        changes[MEAN] = (sum(means) / len(means), error, min(items))
    for name, (mean, error, count) in changes.items():
        reach = quantile(count - 1) * error if count > 1 else math.inf
        found |= dict(
            zip((f"{name}{one}" for one in CHANGES), (mean, mean - reach, mean + reach), strict=True)
        )
    return {name: value for name, value in found.items() if math.isfinite(value)}


def perplexity_ratio(dense: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """Ratio of perplexities of two models from (negative log-likelihood, tokens) of the same windows.

    Its logarithm is the mean difference of a token's loss, whose standard error is that of a ratio of sums
    over windows (Cochran, Sampling Techniques, 2.11); the interval is Student's with windows - 1 degrees of
    freedom. Of one window nothing is known: the interval is without end.
    """
    tokens = sum(count for _, count in dense)
    gaps = [(theirs - ours, count) for (ours, count), (theirs, _) in zip(dense, other, strict=True)]
    mean = sum(gap for gap, _ in gaps) / tokens
    windows = len(gaps)
    if windows < 2 or not math.isfinite(mean):
        return Ratio(_exp(mean), 0.0, math.inf)
    spread = sum((gap - mean * count) ** 2 for gap, count in gaps) * windows / (windows - 1)
    reach = quantile(windows - 1) * math.sqrt(spread) / tokens
    return Ratio(_exp(mean), _exp(mean - reach), _exp(mean + reach))


def quantile(freedom: int) -> float:
    """How many standard errors Student's interval of `COVERAGE` reaches to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + COVERAGE) / 2))


def change_in(metrics: Mapping[str, float], name: str) -> tuple[float, float, float] | None:
    """The change of an accuracy among a model's metrics, with its interval; None where it is not known."""
    values = [metrics.get(f"{name}{one}") for one in CHANGES]
    known = [value for value in values if value is not None]
    return (known[0], known[1], known[2]) if len(known) == len(CHANGES) else None


def _change(gaps: Sequence[float]) -> tuple[float, float, int]:
    """Mean of the differences, its standard error, and how many there are."""
    items = len(gaps)
    mean = sum(gaps) / items
    spread = sum((gap - mean) ** 2 for gap in gaps)
    return mean, math.sqrt(spread / max(1, items - 1) / items), items


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
