"""A message to somebody when a run of the compress flow does not end well, sent by the Prefect server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from resprout.configs.errors import BadInput
from resprout.infra.restarts import FLOW

BAD_ENDS = ("GateNotPassed", "Failed")
BODY = """Run {{ flow_run.name }} ended as {{ flow_run.state.name }}: {{ flow_run.state.message }}
Flow run {{ flow_run.id }} {{ flow_run|ui_url or "" }}"""


def ensure_notice(client: SyncPrefectClient, block: str) -> None:
    """Make or update the automation that sends a message through `block` after a gate or a run failed.

    `block` is a notification block of the server as "type/name", say slack-webhook/on-call. A run whose
    process died is begun again instead, and ends as Failed when that does not help. Raises BadInput where
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
    automation = AutomationCore(
        name=f"resprout: tell {block}",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={f"prefect.flow-run.{state}" for state in BAD_ENDS},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=[{"prefect.resource.role": "flow", "prefect.resource.name": FLOW}],
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=document.id,
                subject="resprout: {{ flow_run.state.name }} ({{ flow_run.name }})",
                body=BODY,
            )
        ],
    )
    keep(client, automation)


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
