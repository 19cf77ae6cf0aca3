"""Deployments: a config that the Prefect server keeps, with when and how often it may run.

Overlap: of a deployment at most `concurrency` runs go at once; another one waits (`enqueue`), or is cancelled
(`cancel-new`). Catch-up: Prefect hands out late what was scheduled while no worker was there; of several such
runs only the newest does something (flows/flow_run.py).
"""

from __future__ import annotations

import difflib
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from cronsim import CronSim, CronSimError

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.prefect.flow_runs import FLOW
from resprout.infra.prefect.server import pool_type, server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule

ENTRYPOINT = "resprout.flows.compress.compress"
"""A module path, which works wherever resprout is installed: no worker has to pull code."""
FIELDS = 5
NO_PLACES = {"Factory", "localtime"}
"""Names of zones that stand for "not set", and for the machine's own."""
NEXT = 3
"""Times of a schedule that are shown."""
EXAMPLE = '"0 2 * * 1" is Mondays at 2:00'
Overlap = Literal["enqueue", "cancel-new"]
RUN_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
"""Seconds between two heartbeats of a run; see infra/prefect/automations.py."""


def deploy(
    document: dict[str, Any],
    name: str,
    *,
    pool: str,
    cron: str | None = None,
    timezone: str | None = None,
    concurrency: int | None = None,
    paused: bool | None = None,
    overlap: Overlap | None = None,
    infra: InfraConfig | None = None,
) -> str:
    """Id of the deployment compress/`name`, made or brought up to date; its runs compress by `document`.

    What is not given stays as it is: the schedule, whether it is paused, limit and overlap (one run at a
    time, and the next one waits, at first), and the job variables. The server itself refuses parameters that
    are no run config.

    Raises:
        BadInput: schedule, pool or server cannot be used; nothing was changed.
    """
    check_schedule(cron, timezone)
    if overlap is not None and overlap not in get_args(Overlap):
        raise BadInput(f"overlap is '{overlap}', but must be one of {', '.join(get_args(Overlap))}")
    with server(infra or InfraConfig()) as client:
        pool_type(client, pool)
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
        from prefect.flows import Flow, load_flow_from_entrypoint
        from prefect.utilities.callables import parameter_schema

        flow: Flow[..., Any] = load_flow_from_entrypoint(ENTRYPOINT)
        before = _existing(client, name)
        kept = [(one.schedule, one.active) for one in before.schedules] if before is not None else []
        wanted = [(_cron_schedule(cron, timezone or "UTC"), True)] if cron else kept
        options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
        variables: dict[str, Any] = {}
        if before is not None:
            paused = before.paused if paused is None else paused
            limit = before.global_concurrency_limit
            concurrency = concurrency or (limit.limit if limit is not None else None)
            options = before.concurrency_options or options
            variables = before.job_variables or {}
        if overlap is not None:
            strategy = ConcurrencyLimitStrategy(overlap.upper().replace("-", "_"))
            options = ConcurrencyOptions(collision_strategy=strategy)
        return str(
            client.create_deployment(
                flow_id=client.create_flow(flow),
                name=name,
                entrypoint=ENTRYPOINT,
                work_pool_name=pool,
                parameters={"config": document},
                parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                enforce_parameter_schema=True,
                schedules=[DeploymentScheduleCreate(schedule=one, active=on) for one, on in wanted],
                concurrency_limit=concurrency or 1,
                concurrency_options=options,
                job_variables={**variables, "env": {**(variables.get("env") or {}), **RUN_ENVIRONMENT}},
                paused=paused or False,
                tags=["resprout"],
            )
        )


def check_schedule(cron: str | None, timezone: str | None) -> None:
    """BadInput where the expression is malformed or never fires, or the zone is unknown or without use."""
    zones = zoneinfo.available_timezones() - NO_PLACES
    if timezone is not None and timezone not in zones:
        near = difflib.get_close_matches(timezone, zones, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give one like Europe/Berlin"
        raise BadInput(f"there is no time zone '{timezone}'; {hint}")
    if cron is None:
        if timezone is not None:
            raise BadInput(f"the time zone {timezone} was given without --cron; add it, say {EXAMPLE}")
        return
    fields = cron.split()
    if len(fields) != FIELDS:
        raise BadInput(f"the cron expression '{cron}' has not five fields; {EXAMPLE}")
    if fault := _cron_fault(fields):
        # The library refuses a day that its month never has as it does one that no month has.
        if (
            _cron_fault([*fields[:3], "*", fields[4]]) is None
            and _cron_fault([*fields[:2], "*", *fields[3:]]) is None
        ):
            raise BadInput(f"the cron expression '{cron}' never fires: there is no such date; {EXAMPLE}")
        raise BadInput(f"the cron expression '{cron}' is malformed ({fault}); {EXAMPLE}")


def _cron_fault(fields: list[str]) -> str | None:
    try:
        next(CronSim(" ".join(fields), datetime.now(UTC)))
    except CronSimError as error:
        return str(error)
    except StopIteration:
        return "no such day"
    return None


def _cron_schedule(cron: str, timezone: str) -> CronSchedule:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError:
        raise BadInput(
            f"the cron expression '{cron}' in the time zone {timezone} is none that Prefect keeps; {EXAMPLE}"
        ) from None


def read(infra: InfraConfig, name: str) -> DeploymentResponse:
    """The deployment compress/`name` as Prefect has it; BadInput that lists those that there are."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    with server(infra) as client:
        found = _existing(client, name)
        if found is not None:
            return found
        ours = FlowFilter(name=FlowFilterName(any_=[FLOW]))
        known = ", ".join(sorted(one.name for one in client.read_deployments(flow_filter=ours))) or "none"
    raise BadInput(
        f"there is no deployment '{name}' (there are: {known}); make it with `resprout deploy CONFIG --name "
        f"{name}`"
    )


def _existing(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"{FLOW}/{name}")
    except ObjectNotFound:
        return None


def pause(infra: InfraConfig, name: str, paused: bool) -> None:
    """Stop the deployment's schedule, or let it go on."""
    from prefect.client.schemas.actions import DeploymentUpdate

    found = read(infra, name)
    with server(infra) as client:
        client.update_deployment(found.id, DeploymentUpdate(paused=paused))


def delete(infra: InfraConfig, name: str) -> None:
    """Remove the deployment with its scheduled runs."""
    found = read(infra, name)
    with server(infra) as client:
        client.delete_deployment(found.id)


def start(infra: InfraConfig, name: str, overrides: list[str], run_name: str) -> FlowRun:
    """A new run of the deployment, called `run_name`, with key=value overrides of its own."""
    found = read(infra, name)
    with server(infra) as client:
        return client.create_flow_run_from_deployment(
            found.id, parameters={"overrides": overrides}, name=run_name
        )


@dataclass(frozen=True)
class Schedule:
    """When a deployment runs: in words, and the next times by the server's own reckoning."""

    words: str
    cron: str
    timezone: str
    next: tuple[datetime, ...]


def schedules(deployment: DeploymentResponse) -> list[Schedule]:
    """The schedules of a deployment that are cron expressions and not switched off."""
    import asyncio

    from prefect.server.schemas.schedules import CronSchedule

    found = []
    for one in deployment.schedules:
        cron, zone = getattr(one.schedule, "cron", None), getattr(one.schedule, "timezone", None) or "UTC"
        if cron is None or not one.active:
            continue
        times = asyncio.run(CronSchedule(cron=cron, timezone=zone).get_dates(NEXT))
        words = CronSim(cron, datetime.now(UTC)).explain()
        found.append(Schedule(words, cron, zone, tuple(times)))
    return found
