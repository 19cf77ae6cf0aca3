"""A Prefect process worker that starts only flows which are installed beside it.

`python -m resprout.infra.prefect.worker start --type process ...` takes the arguments of `prefect worker`.
A deployment may otherwise name a shell command, steps that fetch code, or a file: each runs as this user.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from prefect.states import Failed
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

HARMLESS_STEP = "prefect.deployments.steps.set_working_directory"
"""`prefect deploy` writes it by itself."""
OF_THE_LOADER = ("LD_", "PYTHON")
"""How variables begin that make a process load other code."""


def refusal(deployment: DeploymentResponse | None, job: ProcessJobConfiguration) -> str | None:
    """Return what a run asks for beyond an installed flow; None where nothing.

    Args:
        deployment: The run's.
        job: Command and environment, filled in from the work pool, the deployment and the run.
    """
    if deployment is None:
        return "it has no deployment"
    entrypoint, steps = deployment.entrypoint or "", deployment.pull_steps or []
    if not entrypoint or ":" in entrypoint or "/" in entrypoint:
        return f"its entrypoint is the file {entrypoint}" if entrypoint else "it has no entrypoint"
    if named := sorted({name for step in steps for name in step} - {HARMLESS_STEP}):
        return f"it has the pull step {', '.join(named)}"
    if deployment.storage_document_id is not None:
        return "its code is in a storage block"
    if job._command_configured:
        return "it names a command"
    loader = sorted(
        name
        for name, value in job.env.items()
        if name.upper().startswith(OF_THE_LOADER) and value != os.environ.get(name)
    )
    return f"it sets {', '.join(loader)}" if loader else None


with warnings.catch_warnings():
    # Prefect warns that another worker of the type `process` was there.
    warnings.simplefilter("ignore", UserWarning)

    class InstalledFlowsWorker(ProcessWorker):
        """The worker of the type `process` in this interpreter."""

        async def run(
            self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: Any = None
        ) -> ProcessWorkerResult:
            """Start the run, or set it to Failed with the reason."""
            deployment = (
                await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
            )
            reason = refusal(deployment, configuration)
            if reason is None:
                return await super().run(flow_run, configuration, task_status)
            message = (
                f"this worker starts flows that are installed beside it, and of this run {reason}; make the "
                "deployment with `resprout deploy`, or give it a worker of its own (`prefect worker start`)"
            )
            await self.client.set_flow_run_state(flow_run.id, Failed(message=message), force=True)
            if task_status is not None:
                task_status.started("refused")
            return ProcessWorkerResult(status_code=0, identifier="refused")


if __name__ == "__main__":
    from prefect.cli import app

    sys.argv[1:1] = ["worker"]
    app()
