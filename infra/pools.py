"""Work pools of a Prefect server."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from resprout.configs.errors import BadInput


def ensure_pool(name: str, run_limit: int) -> None:
    """Make the process pool called `name`, or set how many runs it has at once."""
    with get_client(sync_client=True) as client:
        try:
            found = client.create_work_pool(
                WorkPoolCreate(name=name, type="process", concurrency_limit=run_limit)
            )
        except ObjectAlreadyExists:
            found = client.read_work_pool(name)
        if found.type != "process":
            raise BadInput(
                f"the work pool '{name}' is of type {found.type}, but the stack's worker needs a process "
                "pool; set infra.stack.pool to another name"
            )
        if found.concurrency_limit != run_limit:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=run_limit))


def pool_type(client: SyncPrefectClient, name: str) -> str:
    """Type of a work pool (process, docker, kubernetes); BadInput that lists the pools there are."""
    try:
        return client.read_work_pool(name).type
    except ObjectNotFound:
        known = ", ".join(sorted(pool.name for pool in client.read_work_pools())) or "none"
        raise BadInput(
            f"the work pool '{name}' does not exist (there are: {known}); make it with `prefect work-pool "
            f"create {name} --type process`, or start the one-machine stack with `resprout up`"
        ) from None
