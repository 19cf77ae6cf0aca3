"""`resprout deploy`: a config that runs on a schedule or on demand, kept by a Prefect server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resprout.configs.errors import BadInput

if TYPE_CHECKING:
    from resprout.configs.load import Loaded


def deploy(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for all runs.")] = None,
    cron: Annotated[str | None, typer.Option(help='When to run: "0 2 * * 1" is Mondays at 2:00.')] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of --cron; default: UTC.")] = None,
    pool: Annotated[str | None, typer.Option(help="Work pool; default: that of `resprout up`.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; default: the config's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Runs of it at once; at first: 1.")] = None,
    overlap: Annotated[
        str | None, typer.Option(help="A run over --limit: enqueue (at first) or cancel-new.")
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Only stop the schedule.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only let the schedule go on.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Only remove the deployment.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Start a run now.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --run: follow it, and exit as it does.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, for --run only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of stdout: all this as JSON.")] = False,
) -> None:
    """Let a config run on a schedule, on demand, or both, on the machines of a work pool.

    The config is copied to the server, its secrets as ${VARIABLE}; deploy again after a change. What is not
    given again stays: schedule, limit, overlap, pause, job variables. Of the times missed while no worker was
    there, only the newest is run.

    \b
    Examples:
      resprout deploy configs/quickstart.yaml --cron "0 2 * * 1" --timezone Europe/Berlin
      resprout deploy configs/quickstart.yaml --run --wait --set prune.target.params_ratio=0.85
      resprout deploy configs/quickstart.yaml --pause
    """
    actions = {"--pause": pause, "--resume": resume, "--delete": delete}
    given = [option for option, on in actions.items() if on]
    if len(given) > 1 or (given and (run or cron or settings)):
        more = [option for option, on in (("--run", run), ("--cron", cron), ("--set", settings)) if on]
        raise BadInput(f"{' and '.join(given + more)} do not go together; give one of them")
    if settings and not run:
        raise BadInput("--set is for one run; add --run, or write key=value without --set for all runs")
    if wait and not run:
        raise BadInput(
            "--wait follows the run that --run starts; add --run, or give `resprout logs RUN --follow`"
        )
    from resprout.configs.load import load
    from resprout.infra.prefect.deployments import check_schedule

    check_schedule(cron, timezone)
    loaded = load(config, overrides or [])
    this_run = load(config, [*(overrides or []), *(settings or [])])
    title = name or loaded.config.name
    done = _act(loaded, title, given[0]) if given else None
    if done is None:
        done = _deploy(loaded, overrides or [], title, pool, cron, timezone, limit, overlap)
        if run:
            done |= _start(loaded, title, this_run.config.name, settings or [])
    for key, value in done.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        sys.stderr.write(f"{key.replace('_', ' ')}: {shown}\n")
    if as_json:
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()
    if wait:
        from resprout.flows.cli.watching import watch
        from resprout.infra.prefect.run_control import find
        from resprout.infra.prefect.server import server

        with server(loaded.config.infra) as client:
            watch(client, find(client, done["flow_run"]))


def _start(loaded: Loaded, title: str, name: str, settings: list[str]) -> dict[str, Any]:
    """Start a run that is named after its config and now."""
    from resprout.flows.run_name import dated
    from resprout.infra.prefect import deployments
    from resprout.infra.prefect.run_control import page_of

    found = deployments.start(loaded.config.infra, title, settings, dated(name))
    return {"flow_run": str(found.id), "name": found.name, "page": page_of(found)}


def _act(loaded: Loaded, title: str, option: str) -> dict[str, Any]:
    _prepare(loaded)
    from resprout.infra.prefect import deployments

    infra = loaded.config.infra
    if option == "--delete":
        deployments.delete(infra, title)
        return {"deleted": title}
    deployments.pause(infra, title, option == "--pause")
    return {"paused" if option == "--pause" else "resumed": title}


def _deploy(
    loaded: Loaded,
    overrides: list[str],
    title: str,
    pool: str | None,
    cron: str | None,
    timezone: str | None,
    limit: int | None,
    overlap: str | None,
) -> dict[str, Any]:
    from resprout.configs.load import document
    from resprout.flows.check import check

    check(loaded)
    _prepare(loaded)
    from resprout.flows.reach import refuse_out_of_reach
    from resprout.flows.rerun_command import standalone
    from resprout.infra.prefect import deployments
    from resprout.infra.prefect.automations import ensure_automations

    infra = loaded.config.infra
    data = standalone(loaded, document(loaded.path, overrides))
    chosen = pool or infra.stack.pool
    refuse_out_of_reach(infra, data, chosen)
    ensure_automations(infra.prefect.notify)
    deployment = deployments.deploy(
        data,
        title,
        pool=chosen,
        cron=cron,
        timezone=timezone,
        concurrency=limit,
        overlap=overlap,  # type: ignore[arg-type]
        infra=infra,
    )
    done: dict[str, Any] = {"deployment": f"{deployments.FLOW}/{title}", "id": deployment, "pool": chosen}
    made = deployments.read(infra, title)
    found = deployments.schedules(made)
    times = [when for one in found for when in one.next]
    if times:
        done["schedule"] = "; ".join(f"{one.words} ({one.cron}, {one.timezone})" for one in found)
    if made.paused:
        return {**done, "paused": "--resume lets the schedule go on"}
    if times:
        done["next"] = [f"{one:%a %Y-%m-%d %H:%M %Z}" for one in sorted(times)[: deployments.NEXT]]
    return done


def _prepare(loaded: Loaded) -> None:
    """Let the Prefect client, which reads its environment when it is imported, find the server.

    Raises BadInput where no server is named and the one on the stack's port is not of this home.
    """
    import os

    from resprout.infra.environment import prepare
    from resprout.infra.prefect.server import another_homes, api_of

    if fault := another_homes(loaded.config.infra, loaded.home):
        raise BadInput(fault)
    os.environ["PREFECT_API_URL"] = api_of(loaded.config.infra)
    prepare(loaded.config.infra, loaded.home)
