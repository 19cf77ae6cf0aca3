"""Refuse to restart a run whose process died too often: automations cannot count, so the run does."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run

from resprout.configs.errors import StageFailed
from resprout.infra.prefect.flow_runs import in_a_row


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
