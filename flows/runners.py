"""Prefect's task runners as `infra.task_runner` names them, and tasks handed to them without secrets.

Faults of a cluster, out of reach or lost on the way, become one sentence here.
"""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from prefect import Task, flow
from prefect.context import FlowRunContext, SettingsContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.transactions import Transaction

from resprout.configs.errors import ResproutError, StageFailed, Transient, Unreachable
from resprout.configs.infrastructure import InfraConfig, without_credentials
from resprout.flows.check import require_extra
from resprout.infra import logs

R = TypeVar("R")

CONNECT_SECONDS = 30.0
"""How long a Dask scheduler is waited for."""
KILLED = {"KilledWorker", "WorkerCrashedError", "OutOfMemoryError"}
GONE = {"LocalRayletDiedError", "NodeDiedError", "ObjectLostError", "OwnerDiedError", "RaySystemError"}
"""Ray's errors, by name because the package may not be here, for a cluster that is lost as a whole."""


@contextmanager
def started(infra: InfraConfig) -> Iterator[TaskRunner[Any]]:
    """The task runner, connected to its cluster, which is left at the end; a local one is stopped.

    Raises:
        Unreachable: the cluster at the address does not answer.
        StageFailed: a local one does not start.
    """
    runner = task_runner(infra)
    with ExitStack() as entered:
        try:
            entered.enter_context(runner)
            if infra.task_runner == "dask":
                # Prefect connects with the first task only.
                _ = runner.client  # type: ignore[attr-defined]
        except Exception as error:
            raise _not_there(infra, error) from error
        yield runner


def lost(error: Exception, what: str) -> ResproutError:
    """The fault of a cluster that did not bring `what` back, where `what` itself raises nothing.

    Transient where the cluster is gone, so that a new start of it may help.
    """
    if isinstance(error, ResproutError):
        return error
    name, text = type(error).__name__, _line(error)
    if name in KILLED:
        return StageFailed(
            f"{what} ended every process that tried it, most likely for want of memory; use smaller batches "
            "or more shards; what was finished is kept"
        )
    if isinstance(error, OSError | CancelledError) or name in GONE:
        return Transient(
            f"the cluster was lost before {what} was made ({name}: {text}); see to its scheduler and run the "
            "same command again; what was finished is kept"
        )
    return StageFailed(
        f"the task runner did not bring back {what} ({name}: {text}); see to the worker's log and run the "
        "same command again; what was finished is kept"
    )


def _not_there(infra: InfraConfig, error: Exception) -> ResproutError:
    key = f"{infra.task_runner}_address"
    address = getattr(infra, key, None)
    if address is None:
        return StageFailed(
            f"the {infra.task_runner} cluster on this machine did not start ({_line(error)}); set "
            "infra.task_runner: threads, or fewer infra.workers"
        )
    return Unreachable(
        f"infra.{key} {without_credentials(address)} does not answer ({_line(error)}); start the cluster, "
        "give the address of one that runs, or leave the key out to have one started on this machine"
    )


def _line(error: Exception) -> str:
    return without_credentials(" ".join(str(error).split()))[:200]


def task_runner(infra: InfraConfig) -> TaskRunner[Any]:
    """The task runner, not yet started; a local cluster is `workers` processes with one thread each."""
    require_extra(infra)
    if infra.task_runner == "dask":
        from prefect_dask import DaskTaskRunner

        # Dask sets its own level when it is imported, and logs every connection.
        logging.getLogger("distributed").setLevel(logging.WARNING)
        if infra.dask_address is not None:
            return DaskTaskRunner(address=infra.dask_address, client_kwargs={"timeout": CONNECT_SECONDS})
        # One thread a process: torch's state is the process's, and a lost process costs one shard. Whoever
        # reaches a scheduler runs code with it, so even on loopback it asks for a certificate.
        local = {
            "n_workers": infra.workers,
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "security": True,
            # A shard that needs the machine's memory is not killed at a share of it.
            "memory_limit": 0,
        }
        return DaskTaskRunner(cluster_kwargs=local)
    if infra.task_runner == "ray":
        from prefect_ray import RayTaskRunner

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if infra.ray_address is not None:
            return RayTaskRunner(address=infra.ray_address)
        local = {"num_cpus": infra.workers, "include_dashboard": False, "log_to_driver": False}
        return RayTaskRunner(init_kwargs=local)
    return ThreadPoolTaskRunner(max_workers=infra.workers)


@flow(name="shards")
def _shards() -> None:
    """Stands for the flow run on the way to a worker; never run."""


def submit(runner: TaskRunner[Any], task: Task[Any, Any], parameters: dict[str, Any]) -> PrefectFuture[Any]:
    """Hand `task` to the runner as a part of the current flow run.

    To another process goes no secret: a worker takes Prefect's keys from its own environment. Nor does the
    flow itself, its parameters, or a task around this call, which may hold open files and connections.
    """
    around, settings, context = FlowRunContext.get(), SettingsContext.get(), logs.known()

    def inside() -> PrefectFuture[Any]:
        with ExitStack() as entered:
            entered.enter_context(logs.fields(**context))
            if settings is not None:
                entered.enter_context(_AddressOnly(profile=settings.profile, settings=settings.settings))
            if around is not None and around.flow_run is not None:
                slim = FlowRunContext(
                    client=around.client,
                    flow=_shards,
                    flow_run=around.flow_run.model_copy(update={"parameters": {}}),
                    task_runner=runner,
                    result_store=around.result_store,
                    parameters={},
                )
                entered.enter_context(slim)
            return runner.submit(task, parameters)

    return contextvars.Context().run(inside)


def apart(make: Callable[[], R]) -> R:
    """Return what `make` returns, called outside of the transaction of the task around it.

    Prefect commits what is done in a transaction when that ends: stages in a task would be found by others
    only once the task is over, and their leases would be kept until then.
    """

    def inside() -> R:
        Transaction.__var__.set(None)  # type: ignore[arg-type]
        return make()

    return contextvars.copy_context().run(inside)


class _AddressOnly(SettingsContext):
    """Prefect's settings, of which only the server's address travels; a worker has its own for the rest."""

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """The call that a worker is sent."""
        url = self.settings.api.url
        if url is None:
            from prefect.server.api.server import SubprocessASGIServer

            url = SubprocessASGIServer().api_url
        public = {"api": {"url": url}} if without_credentials(url) == url else {}
        return {"profile": {"name": "resprout", "env": {}}, "settings": public}
