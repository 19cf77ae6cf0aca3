"""The automations know every name under which a run of the flow ends: each has an event of its own."""

from __future__ import annotations

import re
from pathlib import Path

from resprout.infra.automations import ENDS

FLOWS = Path(__file__).resolve().parents[2] / "flows"


def test_every_state_that_the_flow_ends_in_stops_the_watch_on_its_heartbeat() -> None:
    source = "".join(path.read_text() for path in FLOWS.rglob("*.py"))
    names = set(re.findall(r"(?:Completed|Failed|Cancelled)\(\s*name=\"(\w+)\"", source))
    assert names >= {"AlreadyClaimed", "Superseded", "OwnVersion"}
    assert {f"prefect.flow-run.{name}" for name in names} <= ENDS
