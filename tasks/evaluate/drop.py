"""The drop of a score against the dense model's on the same items: exact test, intervals, proof of no harm.

Items that both models answer alike say nothing about which is better, however many there are. So the test is
McNemar's (Psychometrika 12, 1947) in its exact form, a binomial test of the items that changed sides, and the
bounds are of the difference of paired proportions by Tango's score method (Statistics in Medicine 17, 1998),
which holds its error rate also where few items change sides, or none: no change among 12 items is no proof.
Scores between 0 and 1, say of ROUGE, have Student's interval of the mean difference instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resprout.tasks.measure.ratio import COVERAGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Drop:
    """Mean scores of two models on the same `items`: on `lost` of them the other is worse, on `won` better.

    `error` is the standard error of the mean difference where scores are not all 0 or 1, else None.
    """

    items: int
    dense: float
    other: float
    lost: int
    won: int
    error: float | None = None

    @property
    def value(self) -> float:
        """What was lost: positive where the other model is worse."""
        return self.dense - self.other

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test: how often chance alone would be as uneven."""
        from scipy.stats import binomtest

        changed = self.lost + self.won
        return float(binomtest(self.lost, changed).pvalue) if changed else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of `COVERAGE`; of fewer than two items nothing is known."""
        rate = (1 - COVERAGE) / 2
        return -self._reversed().upper(rate), self.upper(rate)

    def upper(self, error_rate: float) -> float:
        """Upper end of the one-sided interval that leaves out the true drop at `error_rate`."""
        if self.items < 2:
            return 1.0
        if self.error is not None:
            from scipy.special import stdtrit

            return min(1.0, self.value + float(stdtrit(self.items - 1, 1 - error_rate)) * self.error)
        if self.lost == self.items:
            return 1.0
        from scipy.optimize import brentq

        reach = _quantile(error_rate)
        low, high = (self.lost - self.won) / self.items, 1 - 1e-9

        def beyond(drop: float) -> float:
            return float(score_statistic(self.lost, self.won, self.items, drop)) + reach

        return float(brentq(beyond, low, high)) if beyond(high) < 0 else 1.0

    def _reversed(self) -> Drop:
        return Drop(self.items, self.other, self.dense, self.won, self.lost, self.error)


def drop_of(dense: Sequence[float], other: Sequence[float]) -> Drop:
    """The drop between scores of the same items, which lie between 0 and 1."""
    items = len(dense)
    gaps = [ours - theirs for ours, theirs in zip(dense, other, strict=True)]
    error = None
    if not {*dense, *other} <= {0.0, 1.0}:
        mean = sum(gaps) / items
        error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / max(1, items - 1) / items)
    lost, won = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    return Drop(items, sum(dense) / items, sum(other) / items, lost, won, error)


def score_statistic(lost: ArrayLike, won: ArrayLike, items: int, drop: float) -> NDArray[Any]:
    """Tango's statistic of the hypothesis that the true drop is `drop`: standard normal where it is.

    Counts of many draws may be given at once. The variance is that of the most likely proportions among
    those with this drop.
    """
    import numpy as np

    b, c = np.asarray(lost, dtype=np.float64), np.asarray(won, dtype=np.float64)
    linear = (2 * items - b + c) * drop - b - c
    root = np.sqrt(np.maximum(linear**2 + 8 * items * c * drop * (1 - drop), 0))
    won_share = (root - linear) / (4 * items)
    variance = np.maximum(items * (2 * won_share + drop * (1 - drop)), 1e-300)
    return np.asarray((b - c - items * drop) / np.sqrt(variance))


def not_worse(
    lost: ArrayLike, won: ArrayLike, items: int, margin: float, error_rate: float
) -> NDArray[np.bool_]:
    """Whether the drop is shown to be below `margin`, of many draws at once.

    Equal to `upper(error_rate) < margin` of each. Where the true drop is the margin, this is so, wrongly, in
    about `error_rate` of all draws; where it is larger, in fewer.
    """
    import numpy as np

    return np.asarray(score_statistic(lost, won, items, margin) < -_quantile(error_rate))


def _quantile(error_rate: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - error_rate))
