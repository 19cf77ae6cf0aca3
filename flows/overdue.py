"""Catch-up after downtime: of several missed runs of a schedule only the newest executes.

Prefect makes a schedule's runs beforehand, and hands out late what nobody took in its time: after a week
without a worker an hourly schedule would run 168 times. So a scheduled run does nothing when the next one of
its deployment with the same parameters is due as well.
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
