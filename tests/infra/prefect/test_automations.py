"""The automations know every name under which a run of the flow ends: each has an event of its own."""

from __future__ import annotations

import re
from pathlib import Path

from resprout.configs.infrastructure import PrefectConfig
from resprout.infra.environment import QUIET
from resprout.infra.prefect.automations import (
    ENDS,
    HEARTBEAT,
    SETTLED_SECONDS,
    run_automations,
)

FLOWS = Path(__file__).resolve().parents[3] / "flows"


def test_every_state_that_the_flow_ends_in_stops_the_watch_on_its_heartbeat() -> None:
    source = "".join(path.read_text() for path in FLOWS.rglob("*.py"))
    names = set(re.findall(r"(?:Completed|Failed|Cancelled)\(\s*name=\"(\w+)\"", source))
    assert names >= {"AlreadyClaimed", "Superseded", "OwnVersion"}
    assert {f"prefect.flow-run.{name}" for name in names} <= ENDS


def test_a_run_that_lives_is_heard_before_a_second_process_begins() -> None:
    heartbeat = float(QUIET["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert heartbeat * 1.5 <= SETTLED_SECONDS
    assert HEARTBEAT in run_automations()["resprout: begin a crashed run again"].trigger.expect


def test_the_restart_of_a_run_does_not_wake_the_rule_that_restarts_it() -> None:
    rule = run_automations()["resprout: begin a crashed run again"]
    assert f"prefect.flow-run.{rule.actions[0].name}" not in rule.trigger.expect | rule.trigger.after


def test_the_server_gives_up_no_run_that_may_count_its_restarts_itself() -> None:
    (most,) = (limit.le for limit in PrefectConfig.model_fields["restarts"].metadata if hasattr(limit, "le"))
    deaths = 1 + run_automations()["resprout: give up a run that never begins"].trigger.threshold
    assert deaths > most + 1
