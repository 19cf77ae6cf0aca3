"""A Prefect process worker that starts only flows which are installed beside it.

`python -m resprout.infra.prefect.worker start --type process ...` takes the arguments of `prefect worker`.
A deployment may otherwise name a shell command, steps that fetch code, or a file: each runs as this user.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, cast

from prefect.states import Failed
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult
from pydantic import PrivateAttr

from resprout.infra.prefect.deployments import RUN_ENVIRONMENT

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

MAY_BE_SET = {*RUN_ENVIRONMENT, "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS"}
"""Variables of a run that a deployment or a pool may choose. Any other may make the process load code."""


class InstalledFlowsJob(ProcessJobConfiguration):
    """A job that remembers which variables it was asked to set, beside those that Prefect sets itself."""

    _asked: frozenset[str] = PrivateAttr(default=frozenset())

    def prepare_for_flow_run(self, *args: Any, **named: Any) -> None:
        self._asked = frozenset(self.env)
        super().prepare_for_flow_run(*args, **named)


def refusal(deployment: DeploymentResponse | None, job: InstalledFlowsJob) -> str | None:
    """Return what a run asks for beyond an installed flow; None where nothing.

    Args:
        deployment: The run's.
        job: Command, folder and environment, from the work pool, the deployment and the run.
    """
    if deployment is None:
        return "it has no deployment"
    entrypoint = deployment.entrypoint or ""
    if not entrypoint or ":" in entrypoint or "/" in entrypoint:
        return f"its entrypoint is the file {entrypoint}" if entrypoint else "it has no entrypoint"
    if deployment.pull_steps:
        named = sorted({name for step in deployment.pull_steps for name in step})
        return f"it has the pull step {', '.join(named)}"
    if deployment.storage_document_id is not None:
        return "its code is in a storage block"
    if deployment.path:
        return f"its code is copied from {deployment.path}"
    if job._command_configured:
        return "it names a command"
    if job.working_dir is not None:
        return f"it begins in the folder {job.working_dir}"
    others = sorted(job._asked - MAY_BE_SET)
    return f"it sets {', '.join(others)}" if others else None


with warnings.catch_warnings():
    # Prefect warns that another worker of the type `process` was there.
    warnings.simplefilter("ignore", UserWarning)

    class InstalledFlowsWorker(ProcessWorker):
        """The worker of the type `process` in this interpreter."""

        job_configuration = InstalledFlowsJob

        async def run(
            self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: Any = None
        ) -> ProcessWorkerResult:
            """Start the run, or set it to Failed with the reason."""
            deployment = (
                await self.client.read_deployment(flow_run.deployment_id) if flow_run.deployment_id else None
            )
            reason = refusal(deployment, cast(InstalledFlowsJob, configuration))
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
