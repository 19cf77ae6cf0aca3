"""Time that a stage still needs, by the speed of its last steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MANY = 10
"""Fewest steps of a stage for which time left is estimated."""
SECONDS = 5.0
"""Seconds before the first estimate: the first steps include one-time set-up."""
LAST = 60.0
"""Steps of so many seconds count, and never fewer than two looks."""


class TimeLeft:
    """Seconds left at each call; None in the beginning, and of a stage of few steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: deque[tuple[float, int]] = deque()
        self.total, self.began = 0, clock()

    def __call__(self, done: int, total: int) -> float | None:
        """Seconds left where `done` of `total` steps are done."""
        now, seen = self.clock(), self.seen
        if total != self.total or (seen and done < seen[-1][1]):
            # Another loop of the stage.
            seen.clear()
            self.total, self.began = total, now
        seen.append((now, done))
        while len(seen) > 2 and now - seen[1][0] >= LAST:
            seen.popleft()
        passed, stepped = now - seen[0][0], done - seen[0][1]
        if total < MANY or now - self.began < SECONDS or not stepped:
            return None
        return passed / stepped * (total - done)


def words(seconds: float | None) -> str:
    """Such as "about 3 min left"; empty where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"
