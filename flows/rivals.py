"""What earlier variants of a search scored, held against a variant while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is no worse than another in every value, less being better, and better in one."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


@dataclass(frozen=True)
class Rivals:
    """Scores of the pruned models of other variants, by their names, in each metric that the search goes by.

    Values are signed, so that less is better; `metrics` has a metric's name and its sign, 1 or -1.
    """

    metrics: tuple[tuple[str, int], ...]
    points: Mapping[str, tuple[float, ...]]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Rivals:
        """Of what `as_data` returned, which goes to other processes."""
        return cls(
            tuple((str(name), int(sign)) for name, sign in data["metrics"]),
            {name: tuple(point) for name, point in data["points"].items()},
        )

    def as_data(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"metrics": [*self.metrics], "points": {name: [*one] for name, one in self.points.items()}}

    def point(self, metrics: Mapping[str, float]) -> tuple[float, ...] | None:
        """Signed values of a model; None where it lacks a metric."""
        if any(name not in metrics for name, _ in self.metrics):
            return None
        return tuple(sign * metrics[name] for name, sign in self.metrics)

    def better(self, metrics: Mapping[str, float]) -> str | None:
        """Name of the first variant whose pruned model dominates one with these metrics; None: none does."""
        own = self.point(metrics)
        if own is None:
            return None
        return next((name for name, one in self.points.items() if dominates(one, own)), None)


def front(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Names of the points that no other dominates."""
    return [name for name, one in points.items() if not _is_dominated(one, points.values())]


def _is_dominated(point: tuple[float, ...], others: Iterable[tuple[float, ...]]) -> bool:
    return any(dominates(other, point) for other in others)
