"""How often a run begins again by itself: the names and numbers that flow, server and worker go by."""

from __future__ import annotations

from collections.abc import Iterable

FLOW = "compress"
"""Name of the flow whose runs all of this is about."""
RESTARTING = "Restarting"
"""Name of the state in which a run whose process died is scheduled."""
WAITING = ("Late", "AwaitingConcurrencySlot")
"""States that the server itself puts before a start."""
MOST_RESTARTS = 11
"""More than infra.prefect.restarts allows: only a run that dies before the flow can count gets here."""
NEVER_BEGINS = (
    f"its process died more than {MOST_RESTARTS} times before the flow's own code began; look into the "
    "worker's log (image, installation, memory?), mend it, then retry the run"
)


def in_a_row(states: Iterable[tuple[str, str]]) -> int:
    """Restarts by the server since a person, a schedule or a rule last began the run.

    `states` are type and name of the run's states, oldest first.
    """
    count = 0
    for kind, name in states:
        if kind == "SCHEDULED" and name not in WAITING:
            count = count + 1 if name == RESTARTING else 0
    return count
