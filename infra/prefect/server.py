"""The Prefect server that deployments go to, of a version that works, and its work pools."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig, without_credentials
from resprout.infra.network import is_healthy
from resprout.infra.prefect.auth import own_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OLDEST_SERVER = (3, 9)
"""Older servers refuse fields that this client sends."""


def api_of(infra: InfraConfig) -> str:
    """Address of the server's API: infra.prefect.api_url, PREFECT_API_URL, else the one-machine stack's."""
    return named_api(infra) or f"http://127.0.0.1:{infra.stack.prefect_port}/api"


def named_api(infra: InfraConfig) -> str | None:
    """Address that infra.prefect.api_url or PREFECT_API_URL gives."""
    return infra.prefect.api_url or os.environ.get("PREFECT_API_URL")


def another_homes(infra: InfraConfig, home: Path) -> str | None:
    """Return a sentence where a server that is not named, and not of this home, is on the stack's port."""
    url = api_of(infra)
    if named_api(infra) or own_server(url, home / "prefect") is not None or not is_healthy(f"{url}/health"):
        return None
    return (
        f"the server at {url} is not of the data folder {home}; set infra.prefect.api_url (or "
        "PREFECT_API_URL) to that address if it is meant"
    )


@contextmanager
def server(infra: InfraConfig, own: tuple[str, str] | None = None) -> Iterator[SyncPrefectClient]:
    """A client of the server, whose environment `prepare` has set; `own` is address and auth of another.

    Raises:
        BadInput: it does not answer, does not let this client in, or is of another version.
    """
    import httpx
    from prefect.client.orchestration import SyncPrefectClient, get_client

    shown = without_credentials(own[0] if own else api_of(infra))
    try:
        with SyncPrefectClient(own[0], auth_string=own[1]) if own else get_client(sync_client=True) as client:
            version = client.api_version()
            _check(version, shown)
            client.read_work_pools(limit=1)
            yield client
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise BadInput(
            f"the Prefect server at {shown} does not let this client in; set infra.prefect.api_key to its "
            "key or user:password, which for one of another data folder is the line in prefect/auth there"
        ) from None
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "server" not in str(error).lower():
            raise
        raise BadInput(
            f"no Prefect server answers at {shown} ({type(error).__name__}); start the one-machine stack "
            "with `resprout up`, or set infra.prefect.api_url"
        ) from None


def release(version: str) -> tuple[int, int]:
    """Return major and minor of a server's version; zeros where it is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _check(version: str, shown: str) -> None:
    if release(version)[0] != OLDEST_SERVER[0] or release(version) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise BadInput(
            f"the Prefect server at {shown} is of version {version}, but this client needs {oldest} or a "
            f"later {OLDEST_SERVER[0]}; upgrade the server"
        )


def ensure_pool(name: str, run_limit: int) -> None:
    """Make the process pool called `name`, or set how many runs it has at once."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

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
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_work_pool(name).type
    except ObjectNotFound:
        known = ", ".join(sorted(pool.name for pool in client.read_work_pools())) or "none"
        raise BadInput(
            f"the work pool '{name}' does not exist (there are: {known}); make it with `prefect work-pool "
            f"create {name} --type process`, or start the one-machine stack with `resprout up`"
        ) from None
