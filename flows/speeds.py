"""The ratios of a model's speeds to the dense model's, as a result states them."""

from __future__ import annotations

from collections.abc import Mapping

from resprout.configs.result import SpeedResult
from resprout.tasks.measure.ratio import ratio_in


def speeds_to_dense(metrics: Mapping[str, float]) -> dict[str, SpeedResult]:
    """By the name of each speed among `metrics` its ratio to the dense model's; nothing of the dense one."""
    found = {name: ratio for name in metrics if (ratio := ratio_in(metrics, name)) is not None}
    return {
        name: SpeedResult(ratio=one.median, low=one.low, high=one.high, different=one.different)
        for name, one in found.items()
    }
