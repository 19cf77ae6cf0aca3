"""Check that a deployment's runs can reach its files, and make the server's automations."""

from __future__ import annotations

import sys
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig
from resprout.flows.rerun_command import local_places

EVERYWHERE = "process"
"""Pool type whose runs see this machine's folders."""


def refuse_out_of_reach(infra: InfraConfig, data: dict[str, Any], pool: str) -> None:
    """BadInput where a run config's plain data names paths that runs of the pool do not see."""
    from resprout.infra.prefect.server import pool_type, server

    with server(infra) as client:
        kind = pool_type(client, pool)
    if kind != EVERYWHERE and (local := local_places(data)):
        raise BadInput(
            f"{', '.join(local)} lie on this machine, where a run in the {kind} pool '{pool}' does not see "
            "them; put them in a bucket or on the hub, or use a process pool"
        )


def automate(infra: InfraConfig, command: str) -> None:
    """Make the server's automations; print a line where failures cannot be notified.

    A notification block can only be saved on a server that is up, so its lack ends nothing.
    """
    from resprout.infra.prefect.automations import ensure_automations

    try:
        ensure_automations(infra.prefect.notify)
    except BadInput as error:
        sys.stderr.write(f"no notice is sent of runs that fail: {error}, and call `{command}` again\n")
