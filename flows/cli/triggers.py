"""`resprout triggers`: try rules on an event, put them into force, see what became of deliveries."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = {"help_option_names": ["-h", "--help"]}

triggers = typer.Typer(
    help="Runs that start when something happens in the model registry.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=HELP,
)

Config = Annotated[
    Path | None, typer.Option(help="Config with infra (YAML); default: RESPROUT_INFRA__* of the environment.")
]
Rules = Annotated[Path | None, typer.Option(help="Rules (YAML); default: infra.relay.rules.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]


@triggers.command("test", context_settings=HELP)
def try_rules(
    event: Annotated[Path, typer.Option(help="Body of a delivery (JSON).")],
    rules: Rules = None,
    config: Config = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what an event would start, or for each rule why it starts nothing. Nothing is started.

    \b
    Examples:
      resprout triggers test --event event.json --rules rules.yaml
      resprout triggers test --event event.json --config infra.yaml
      resprout triggers test --event event.json --rules rules.yaml --json
    """
    infra, home = _infra(config, debug)
    from resprout.flows.triggers import would_start
    from resprout.infra.relay.serve import rules_of

    answer = would_start(event, rules_of(infra, rules), infra, home)
    if as_json:
        found: list[dict[str, Any]] = [
            {
                "rule": ready.rule.name,
                "starts": one.starts,
                "why": one.why,
                "config": str(ready.path),
                "overrides": list(one.overrides),
            }
            for ready, one in answer.decisions
        ]
        typer.echo(json.dumps({"version": answer.version.uri, "facts": answer.facts, "rules": found}))
        return
    typer.echo(f"{answer.version.uri}, by {answer.facts}")
    for ready, one in answer.decisions:
        if one.starts:
            typer.echo(f"rule {ready.rule.name}: starts {ready.path}")
            for override in one.overrides:
                typer.echo(f"  {override}")
        else:
            typer.echo(f"rule {ready.rule.name}: starts nothing, because {one.why}")


@triggers.command(context_settings=HELP)
def apply(
    url: Annotated[str | None, typer.Option(help="Address at which MLflow reaches the relay.")] = None,
    rules: Rules = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Make the deployment of every rule, and with --url the webhook in MLflow; again brings both up to date.

    \b
    Examples:
      resprout triggers apply --config infra.yaml --url https://relay.example.com/webhooks/mlflow
      resprout triggers apply --config infra.yaml --rules rules.yaml
      resprout triggers apply --url http://127.0.0.1:8300/webhooks/mlflow
    """
    from resprout.configs.errors import BadInput

    infra, _ = _infra(config, debug)
    from resprout.flows.triggers import deploy_rules
    from resprout.infra.relay.serve import rules_of
    from resprout.infra.relay.webhook import EVENTS, register_webhook

    found, uri, secret = rules_of(infra, rules), infra.mlflow.tracking_uri or "", infra.relay.webhook_secret
    if url is not None and not uri.startswith(("http://", "https://")):
        raise BadInput(
            "only an MLflow server sends webhooks, and infra.mlflow.tracking_uri names none; leave --url "
            "out: the relay looks at the registry by itself every infra.relay.poll_seconds"
        )
    if url is not None and secret is None:
        raise BadInput("infra.relay.webhook_secret is not set; MLflow signs its deliveries with it")
    for name in deploy_rules(found, infra):
        typer.echo(f"deployment {name}")
    if url is not None and secret is not None:
        identity = register_webhook(uri, url, secret.get_secret_value())
        typer.echo(f"webhook {identity} on {', '.join(EVENTS)}")


@triggers.command(context_settings=HELP)
def status(config: Config = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show deliveries that wait or failed, with reasons, and the runs that were started.

    \b
    Examples:
      resprout triggers status
      resprout triggers status --config infra.yaml
      resprout triggers status --config infra.yaml --json
    """
    from contextlib import closing
    from dataclasses import asdict

    infra, home = _infra(config, debug)
    from resprout.infra.relay.outbox import FAILED, WAITING

    with closing(_outbox(infra, home)) as outbox:
        counts, _ = outbox.counts()
        waiting, failed, starts = outbox.rows(WAITING), outbox.rows(FAILED), outbox.starts()
    if as_json:
        shown = {"waiting": [asdict(row) for row in waiting], "failed": [asdict(row) for row in failed]}
        typer.echo(json.dumps({"counts": counts, **shown, "started": starts}))
        return
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    for row in (*waiting, *failed):
        why = row.reason or "not looked at yet"
        what = f"{row.name} version {row.version} ({row.kind}, id {row.id})"
        typer.echo(f"{_when(row.received)} {row.state}: {what}: {why}")
    for one in starts:
        what = f"{one['name']} version {one['version']} by rule {one['rule']}"
        how = f"started again ({one['attempt']})" if one["attempt"] else "started"
        typer.echo(f"{_when(one['at'])} {how}: {what}: flow run {one['flow_run_id']}")


@triggers.command(context_settings=HELP)
def retry(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]...", help="Failed deliveries, by id of status.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All failed deliveries.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Hand over failed deliveries once more, after what was wrong is mended.

    \b
    Examples:
      resprout triggers retry 17 18
      resprout triggers retry --all
      resprout triggers retry --all --config infra.yaml
    """
    from contextlib import closing

    from resprout.configs.errors import BadInput

    if every == bool(ids):
        raise BadInput(
            "give the ids of failed deliveries, as `resprout triggers status` shows them, or --all"
        )
    infra, home = _infra(config, debug)
    with closing(_outbox(infra, home)) as outbox:
        count = outbox.retry(None if every else ids)
    if ids and count < len(set(ids)):
        raise BadInput(
            f"{count} of {len(set(ids))} deliveries had failed and wait again; see triggers status"
        )
    typer.echo(f"{count} waiting again")


@triggers.command(context_settings=HELP)
def again(
    rule: Annotated[str, typer.Argument(help="Name of the rule.")],
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="Number of the version.")],
    rules: Rules = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Start a rule's run for a version once more: its run was deleted, or cancelled for good.

    \b
    Examples:
      resprout triggers again compress-chat chat-7b 3
      resprout triggers again compress-chat chat-7b 3 --config infra.yaml
      resprout triggers again compress-chat chat-7b 3 --rules rules.yaml
    """
    infra, home = _infra(config, debug)
    from resprout.flows.triggers import start_again
    from resprout.infra.relay.serve import rules_of

    typer.echo(f"flow run {start_again(rule, name, version, rules_of(infra, rules), infra, home)}")


def _outbox(infra: Any, home: Path) -> Any:
    """The outbox of a relay that has run."""
    from resprout.configs.errors import BadInput
    from resprout.infra.relay.outbox import Outbox

    if infra.relay.database_url is None and not (home / "relay.db").is_file():
        raise BadInput(f"no relay has run with the data folder {home}; set RESPROUT_HOME or give --config")
    return Outbox.open(infra.relay, home)


def _infra(config: Path | None, debug: bool) -> Any:
    from resprout.configs.load import load_infra
    from resprout.infra.environment import prepare

    infra, home = load_infra(config)
    prepare(infra, home, debug)
    return infra, home


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
