"""What the Prefect server does by itself when the process of a run dies: mark the run, and begin it again.

A process that was killed cannot say so, which the server tells from its silence: a run sends a heartbeat
every 30 seconds, and one that was silent for `SILENT_SECONDS` is marked Crashed. A run that crashed, by that
or by its own word (SIGTERM, out of memory), is scheduled again in the state `RESTARTING`; it goes on from its
finished stages, and counts its restarts itself (flows/restarts.py).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from resprout.infra.notices import FLOW, ensure_notice

RESTARTING = "Restarting"
SILENT_SECONDS = 90.0
"""Three heartbeats; the server's own restart takes less."""
UNSTARTED_SECONDS = 1800.0
SETTLED_SECONDS = 10.0
"""The least that Prefect waits for what does not come."""
HEARTBEAT = "prefect.flow-run.heartbeat"
OWN_ENDS = ("AlreadyClaimed", "GateNotPassed", "OwnVersion", "Superseded")
"""Names that the flow gives its last state, in place of Completed or Failed."""
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", *OWN_ENDS)}
STARTS = {
    f"prefect.flow-run.{state}"
    for state in ("Scheduled", "Pending", "Running", "AwaitingRetry", RESTARTING, "Resuming")
}
OF_THE_FLOW: dict[str, Any] = {"prefect.resource.role": "flow", "prefect.resource.name": FLOW}


def ensure_automations(notify: str | None = None) -> None:
    """Make or update the automations, each known by its name; `notify` names a block to tell of bad ends.

    Raises BadInput where there is no such block, when all else is made: a new server has none yet.
    """
    wanted = [silent_run_crashed(), unstarted_run_crashed(), crashed_run_again()]
    with get_client(sync_client=True) as client:
        for automation in wanted:
            found = client.read_automations_by_name(automation.name)
            if found:
                client.update_automation(found[0].id, automation)
            else:
                client.create_automation(automation)
        if notify is not None:
            ensure_notice(client, notify)


def silent_run_crashed() -> AutomationCore:
    """Crashed, for a run that was heard of and then no more."""
    return _unless(
        "resprout: mark a run whose process died",
        {HEARTBEAT, "prefect.flow-run.Running"},
        ENDS | {HEARTBEAT},
        SILENT_SECONDS,
        _crashed("its process sent no sign of life any more"),
    )


def unstarted_run_crashed() -> AutomationCore:
    """Crashed, for a run that a worker took and that never ran; an image may have to be fetched first."""
    return _unless(
        "resprout: mark a run that never began",
        {"prefect.flow-run.Pending"},
        ENDS | {HEARTBEAT, "prefect.flow-run.Running"},
        UNSTARTED_SECONDS,
        _crashed("it was taken by a worker, but never began"),
    )


def crashed_run_again() -> AutomationCore:
    """Scheduled again, for a run that crashed and stayed so: Prefect's worker tells of one death twice."""
    return _unless(
        "resprout: begin a crashed run again",
        {"prefect.flow-run.Crashed"},
        STARTS | ENDS - {"prefect.flow-run.Crashed"},
        SETTLED_SECONDS,
        ChangeFlowRunState(
            state=StateType.SCHEDULED,
            name=RESTARTING,
            message="its process died; it goes on from its finished stages",
            force=False,
        ),
    )


def _crashed(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)


def _unless(
    name: str, after: set[str], expect: set[str], seconds: float, action: ChangeFlowRunState
) -> AutomationCore:
    """`action` on a run of which none of `expect` was heard for so long `after` an event."""
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=after,
            expect=expect,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=[OF_THE_FLOW],
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[action],
    )
