"""`resprout triggers`: try rules on an event, put them into force, see what they started."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resprout.flows.cli.summaries import WholeSummaries

if TYPE_CHECKING:
    from resprout.configs.infrastructure import InfraConfig
    from resprout.configs.rules import LoadedRule
    from resprout.infra.triggers.state import TriggerState

HELP = {"help_option_names": ["-h", "--help"]}

triggers = typer.Typer(
    cls=WholeSummaries,
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

    answer = would_start(event, _rules(infra, rules), infra, home)
    if as_json:
        found = [
            {
                "rule": loaded.rule.name,
                "starts": not decision.why,
                "why": decision.why,
                "config": str(loaded.path),
                "overrides": list(decision.overrides),
            }
            for loaded, decision in answer.decisions
        ]
        typer.echo(json.dumps({"version": answer.version.uri, "facts": answer.facts, "rules": found}))
        return
    typer.echo(f"{answer.version.uri}, by {answer.facts}")
    for loaded, decision in answer.decisions:
        if decision.why:
            typer.echo(f"rule {loaded.rule.name}: starts nothing, because {decision.why}")
            continue
        typer.echo(f"rule {loaded.rule.name}: starts {loaded.path}")
        for override in decision.overrides:
            typer.echo(f"  {override}")


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
    from resprout.infra.triggers.webhook import EVENTS, register_webhook

    found, uri, secret = _rules(infra, rules), infra.mlflow.tracking_uri or "", infra.relay.webhook_secret
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
    """Show versions and aliases that wait or failed, with reasons, and the runs that were started.

    \b
    Examples:
      resprout triggers status
      resprout triggers status --config infra.yaml
      resprout triggers status --config infra.yaml --json
    """
    from contextlib import closing
    from dataclasses import asdict

    infra, home = _infra(config, debug)
    from resprout.infra.triggers.state import FAILED, STARTED, WAITING

    with closing(_state(infra, home)) as state:
        counts = state.counts()
        waiting, failed, started = (state.newest(one) for one in (WAITING, FAILED, STARTED))
    if as_json:
        shown = {"waiting": waiting, "failed": failed, "started": started}
        listed = {name: [asdict(entry) for entry in entries] for name, entries in shown.items()}
        typer.echo(json.dumps({"counts": counts, **listed}))
        return
    typer.echo(", ".join(f"{counts[state]} {state}" for state in (WAITING, STARTED, FAILED)))
    for entry in (*waiting, *failed, *started):
        alias = f" as {entry.alias}" if entry.alias else ""
        what = f"{entry.name} version {entry.version}{alias} by rule {entry.rule}"
        if entry.state == STARTED:
            how = f"started again ({entry.attempt})" if entry.attempt else "started"
            typer.echo(f"{_when(entry.at)} {how}: {what}: flow run {entry.flow_run_id}")
        else:
            typer.echo(f"{_when(entry.at)} {entry.state}: {what} (id {entry.id}): {entry.reason}")


@triggers.command(context_settings=HELP)
def retry(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID]...", help="What failed, by id of status.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that failed.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Try what failed once more, once the cause is fixed.

    \b
    Examples:
      resprout triggers retry 17 18
      resprout triggers retry --all
      resprout triggers retry --all --config infra.yaml
    """
    from contextlib import closing

    from resprout.configs.errors import BadInput

    if every == bool(ids):
        raise BadInput("give the ids of what failed, as `resprout triggers status` shows them, or --all")
    infra, home = _infra(config, debug)
    with closing(_state(infra, home)) as state:
        count = state.retry(None if every else ids)
    if ids and count < len(set(ids)):
        raise BadInput(f"{count} of {len(set(ids))} had failed and wait again; see triggers status")
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

    typer.echo(f"flow run {start_again(rule, name, version, _rules(infra, rules), infra, home)}")


def _rules(infra: InfraConfig, given: Path | None) -> tuple[LoadedRule, ...]:
    from resprout.configs.rules import load_rules
    from resprout.infra.triggers.serve import rules_path

    return load_rules(rules_path(infra, given))


def _state(infra: InfraConfig, home: Path) -> TriggerState:
    """The database of a relay that has run."""
    from resprout.configs.errors import BadInput
    from resprout.infra.triggers.state import TriggerState

    if infra.relay.database_url is None and not (home / "relay.db").is_file():
        raise BadInput(f"no relay has run with the data folder {home}; set RESPROUT_HOME or give --config")
    return TriggerState.open(infra.relay, home)


def _infra(config: Path | None, debug: bool) -> tuple[InfraConfig, Path]:
    from resprout.configs.load import load_infra
    from resprout.infra.environment import prepare

    infra, home = load_infra(config)
    prepare(infra, home, debug)
    return infra, home


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
