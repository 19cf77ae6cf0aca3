"""Automations of the Prefect server: mark a run whose process died, begin it again, and notify of bad ends.

A process that was killed cannot say so; the server knows it by its silence: a run sends a heartbeat
every 30 seconds, and one that was silent for `SILENT_SECONDS` is marked Crashed. A run that crashed, by that
or by its own word (SIGTERM, out of memory), is scheduled again in the state `RESTARTING`; it goes on from its
finished stages, and counts its restarts itself (flows/flow_run.py).

Silence may also be the server's own: after it was down it takes every run for dead. So it waits for one more
heartbeat before a second process begins; a run that is heard again stays Crashed until it ends as it will. A
run that dies before the flow's code begins cannot count, so the server counts its deaths and fails it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from resprout.configs.errors import BadInput
from resprout.infra.prefect.flow_runs import FLOW, GATE_NOT_PASSED, MOST_RESTARTS, NEVER_BEGINS, RESTARTING

SILENT_SECONDS = 90.0
"""Three heartbeats; the server's own restart takes less."""
UNSTARTED_SECONDS = 1800.0
SETTLED_SECONDS = 45.0
"""More than a heartbeat: a run that lives sends one in this time."""
ENDLESS_HOURS = 6.0
"""In which deaths are counted; one takes a minute, or several where a cluster fetches an image each time."""
HEARTBEAT = "prefect.flow-run.heartbeat"
CRASHED = "prefect.flow-run.Crashed"
OWN_ENDS = ("AlreadyClaimed", GATE_NOT_PASSED, "OwnVersion", "Superseded")
"""Names that the flow gives its last state, in place of Completed or Failed."""
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", *OWN_ENDS)}
STARTS = {
    f"prefect.flow-run.{state}" for state in ("Scheduled", "Pending", "Running", "AwaitingRetry", "Resuming")
}
"""`RESTARTING` is not among them: Prefect (3.9.1) takes the action of a proactive trigger before it removes
the trigger's count, so an event of that action which the trigger expects may make it act a second time. In
return a run that a worker restarted, and that waits longer than `SETTLED_SECONDS` for its turn, is put into
the state once more; `in_a_row` counts one death once.
"""
BAD_ENDS = (GATE_NOT_PASSED, "Failed")
BODY = """Run {{ flow_run.name }} ended as {{ flow_run.state.name }}: {{ flow_run.state.message }}
Flow run {{ flow_run.id }} {{ flow_run|ui_url or "" }}"""
OF_THE_FLOW: dict[str, Any] = {"prefect.resource.role": "flow", "prefect.resource.name": FLOW}


def ensure_automations(notify: str | None = None) -> None:
    """Make or update the automations, each known by its name; `notify` names a block for notices.

    Raises BadInput where there is no such block, when all else is made: a new server has none yet.
    """
    with get_client(sync_client=True) as client:
        for automation in run_automations().values():
            keep(client, automation)
        if notify is not None:
            ensure_notice(client, notify)


def run_automations() -> dict[str, AutomationCore]:
    """Return by name what the server does about runs whose own process cannot."""
    made = (
        _automation(
            "resprout: mark a run whose process died",
            Posture.Proactive,
            {HEARTBEAT, "prefect.flow-run.Running"},
            ENDS | {HEARTBEAT},
            SILENT_SECONDS,
            _change(StateType.CRASHED, "Crashed", "its process sent no sign of life any more"),
        ),
        # An image may have to be fetched first.
        _automation(
            "resprout: mark a run that never began",
            Posture.Proactive,
            {"prefect.flow-run.Pending"},
            ENDS | {HEARTBEAT, "prefect.flow-run.Running"},
            UNSTARTED_SECONDS,
            _change(
                StateType.FAILED,
                "Failed",
                f"a worker took it, but it did not begin in {UNSTARTED_SECONDS / 60:.0f} minutes; look at "
                "the worker's log (image, quota, a lost machine?), then retry the run",
            ),
        ),
        _automation(
            "resprout: begin a crashed run again",
            Posture.Proactive,
            {CRASHED},
            STARTS | {HEARTBEAT} | ENDS - {CRASHED},
            SETTLED_SECONDS,
            _change(StateType.SCHEDULED, RESTARTING, "its process died; it goes on from its finished stages"),
        ),
        _automation(
            "resprout: give up a run that never begins",
            Posture.Reactive,
            {CRASHED},
            {CRASHED},
            ENDLESS_HOURS * 3600,
            _change(StateType.FAILED, "Failed", NEVER_BEGINS),
            # An event that is in `after` and `expect` opens the count and is not in it.
            MOST_RESTARTS,
        ),
    )
    return {one.name: one for one in made}


def ensure_notice(client: SyncPrefectClient, block: str) -> None:
    """Make or update the automation that sends a message through `block` after a gate or a run failed.

    `block` is a notification block of the server as "type/name", say slack-webhook/on-call. A run whose
    process died is restarted instead, and ends as Failed when that does not help. Raises BadInput where
    there is no such block.
    """
    kind, _, name = block.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        known = sorted(
            f"{one.block_type.slug}/{one.name}"
            for one in client.read_block_documents()
            if one.block_type is not None and one.name
        )
        raise BadInput(
            f"infra.prefect.notify names {block}, but the Prefect server has no such block (it has: "
            f"{', '.join(known) or 'none'}); save a notification block on its page or by `prefect block "
            "create`, and give type/name"
        ) from None
    message = SendNotification(
        block_document_id=document.id,
        subject="resprout: {{ flow_run.state.name }} ({{ flow_run.name }})",
        body=BODY,
    )
    ends = {f"prefect.flow-run.{state}" for state in BAD_ENDS}
    keep(client, _automation(f"resprout: tell {block}", Posture.Reactive, set(), ends, 0.0, message))


def keep(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Make the automation, or bring the one of its name up to date.

    One that is as it should be is left alone: with an update the server forgets which runs it is watching.
    """
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
    elif _content(found[0]) != _content(automation):
        client.update_automation(found[0].id, automation)


def _content(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include={"enabled", "trigger", "actions"})


def _change(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=message, force=False)


def _automation(
    name: str,
    posture: Literal[Posture.Reactive, Posture.Proactive],
    after: set[str],
    expect: set[str],
    seconds: float,
    action: ChangeFlowRunState | SendNotification,
    threshold: int = 1,
) -> AutomationCore:
    """`action` on a run of which so many of `expect` came within the time `after` an event.

    Proactive: of which fewer came in that time.
    """
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            posture=posture,
            after=after,
            expect=expect,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=[OF_THE_FLOW],
            for_each={"prefect.resource.id"},
            threshold=threshold,
            within=timedelta(seconds=seconds),
        ),
        actions=[action],
    )
