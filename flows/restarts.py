"""How often a run whose process died has begun again by itself: automations cannot count, so the run does."""

from __future__ import annotations

from collections.abc import Iterable

from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from resprout.configs.errors import StageFailed

RESTARTING = "Restarting"
"""Name of the state in which the server's automation schedules such a run; see infra/automations.py."""
WAITING = ("Late", "AwaitingConcurrencySlot")
"""States that the server itself puts before a start."""


def refuse_endless(most: int) -> None:
    """StageFailed where this run begins again by itself for more than the `most`-th time in a row."""
    if not deployment.id:
        return
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
    count = in_a_row(
        (state.type.value, state.name or "") for state in sorted(states, key=lambda one: one.timestamp)
    )
    if count > most:
        raise StageFailed(
            f"the process of this run died {count} times in a row, and infra.prefect.restarts is {most}; "
            "look for what kills it (memory?), then retry the run: it goes on from its finished stages"
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
