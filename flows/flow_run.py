"""Decide whether a scheduled flow run executes: skip missed runs, limit restarts.

Prefect makes a schedule's runs beforehand, and hands out late what no worker took in time: after a week
without a worker an hourly schedule would run 168 times. So a scheduled run does nothing when the next one of
its deployment with the same parameters is due as well. A run whose process died too often ends: automations
cannot count, so the run does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run

from resprout.configs.errors import StageFailed
from resprout.infra.prefect.flow_runs import in_a_row
from resprout.infra.prefect.run_control import note_process


def newer_due() -> str | None:
    """Name of a scheduled run that is due and newer than this one; None where this is the one to do."""
    context = FlowRunContext.get()
    own = context.flow_run if context is not None else None
    if own is None or own.deployment_id is None or not own.auto_scheduled or own.expected_start_time is None:
        return None
    moment: Any = datetime.now(UTC)
    waiting = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING]))
    due = FlowRunFilterExpectedStartTime(after_=own.expected_start_time, before_=moment)
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=waiting, expected_start_time=due),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[own.deployment_id])),
        )
    newer = [
        run
        for run in found
        if run.auto_scheduled
        and run.expected_start_time is not None
        # Two schedules of one deployment may have the same time, and other parameters make another run.
        and run.expected_start_time > own.expected_start_time
        and run.parameters == own.parameters
    ]
    return newer[-1].name if newer else None


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


def note_own_process() -> None:
    """Let `resprout cancel` find the process of a run that a command line began; a sweep's is noted once."""
    if flow_run.parent_flow_run_id:
        return
    with get_client(sync_client=True) as client:
        note_process(client, flow_run.id)
