"""The verbs of `resprout triggers`: try rules on an event, deploy them, start a run again."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import document, load
from resprout.configs.rules import LoadedRule
from resprout.flows.rerun_command import standalone
from resprout.infra.prefect.flow_runs import FLOW, FlowRuns, NoDeployment
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.decision import Decision, aliases_for, decide, key_of, mismatch, own_export
from resprout.infra.triggers.model_registry import ModelRegistry, NotRegistered, RegisteredVersion
from resprout.infra.triggers.serve import prefect_url
from resprout.infra.triggers.state import STARTED, LastSeen, TriggerState
from resprout.infra.triggers.webhook import EVENTS, Refused, parse

ANY_VERSION = "model.source=models:/any/1"


@dataclass(frozen=True)
class RuleDecisions:
    """The decisions of all rules on an event, and where the version's facts are from."""

    version: RegisteredVersion
    facts: str
    decisions: tuple[tuple[LoadedRule, Decision], ...]


def would_start(event: Path, rules: tuple[LoadedRule, ...], infra: InfraConfig, home: Path) -> RuleDecisions:
    """Each rule's decision on a delivery's body in a file; nothing is started or kept.

    The version is read from the registry, as the relay does; where that has none, the event itself must do.
    """
    try:
        body = event.expanduser().read_bytes()
        delivery = parse(body)
    except OSError as error:
        raise BadInput(
            f"no event at {event} ({error.strerror}); give the body of a delivery as JSON"
        ) from None
    except Refused:
        raise BadInput(
            f"{event} is no delivery of MLflow; give JSON with entity, action, data.name and data.version"
        ) from None
    if delivery is None:
        raise BadInput(f"{event} is of a kind that starts nothing; give one of {', '.join(EVENTS)}")
    version = _event_version(json.loads(body)["data"], delivery.name, delivery.version)
    registry, store = ModelRegistry(infra.mlflow, home), ArtifactStore.from_config(infra.store, home)
    facts = "the event alone"
    trail: tuple[RegisteredVersion, ...] = (version,)
    tagged = "the event has the tag resprout.digest" if "resprout.digest" in version.tags else None
    own: Callable[[], str | None] = lambda: tagged  # noqa: E731
    if infra.mlflow.tracking_uri is not None or (home / "mlflow.db").is_file():
        try:
            version = registry.version(delivery.name, delivery.version)
            trail, facts = registry.trail(version), f"the registry at {registry.shown_uri}"
            own = functools.partial(own_export, trail, registry, store)
        except NotRegistered:
            facts = f"the event alone, because the registry at {registry.shown_uri} has no such version"
        except Transient as fault:
            facts = f"the event alone, because {fault}"

    def decision(loaded: LoadedRule) -> Decision:
        why = mismatch(loaded.rule, {delivery.kind}, version.name)
        alias = next(iter(aliases_for(loaded.rule, version)), "")
        return Decision(why=why) if why else decide(loaded, version, alias, trail, own)

    return RuleDecisions(version, facts, tuple((loaded, decision(loaded)) for loaded in rules))


def start_again(
    rule: str, name: str, number: str, rules: tuple[LoadedRule, ...], infra: InfraConfig, home: Path
) -> str:
    """Id of a new flow run for a version that may have started the rule before; noted as the next attempt.

    What the rule refuses is refused here too. Raises BadInput, Transient where a server does not answer.
    """
    found = {loaded.rule.name: loaded for loaded in rules}
    if rule not in found:
        raise BadInput(f"no rule is called {rule}; give one of {', '.join(found)}")
    loaded, registry, uri = found[rule], ModelRegistry(infra.mlflow, home), f"models:/{name}/{number}"
    store, runs = ArtifactStore.from_config(infra.store, home), FlowRuns(infra.prefect, prefect_url(infra))
    try:
        version = registry.version(name, number)
        trail = registry.trail(version)
    except NotRegistered:
        raise BadInput(f"the registry at {registry.shown_uri} has no {uri}; give name and number") from None
    alias = next(iter(aliases_for(loaded.rule, version)), "")
    decision = decide(loaded, version, alias, trail, lambda: own_export(trail, registry, store))
    if why := mismatch(loaded.rule, set(loaded.rule.on), name) or decision.why:
        raise BadInput(f"rule {rule} starts nothing for {uri}: {why}; change the rule or the version")
    with closing(TriggerState.open(infra.relay, home)) as state:
        attempt = len(state.starts(rule, version, alias))
        key = key_of(rule, version, alias, attempt)
        try:
            run = runs.start(rule, key, f"{name}-{number}", decision.overrides, loaded.rule.own)
        except NoDeployment:
            raise BadInput(
                f"Prefect has no deployment {FLOW}/{rule}; run `resprout triggers apply`"
            ) from None
        entry = LastSeen(rule, name, number, version.created, alias, attempt, state=STARTED, flow_run_id=run)
        state.note_start(entry)
    return run


def deploy_rules(rules: tuple[LoadedRule, ...], infra: InfraConfig) -> list[str]:
    """Names of the deployments of all rules, made or brought up to date.

    Raises:
        BadInput: what `resprout deploy` refuses of a rule's config; then none was made.
    """
    from resprout.flows.check import check
    from resprout.flows.reach import automate, refuse_out_of_reach
    from resprout.infra.prefect.deployments import deploy

    wanted = []
    for loaded in rules:
        rule, pool = loaded.rule.name, loaded.rule.pool or infra.stack.pool
        # A version takes the place of the model that the config names.
        config = load(loaded.path, [ANY_VERSION])
        data = standalone(config, document(loaded.path))
        try:
            check(config)
            refuse_out_of_reach(infra, {key: data[key] for key in data if key != "model"}, pool)
        except BadInput as error:
            raise BadInput(f"rule {rule}: {error}") from None
        wanted.append((data, rule, pool))
    automate(infra, "resprout triggers apply")
    for data, rule, pool in wanted:
        deploy(data, rule, pool=pool, infra=infra)
    return [f"{FLOW}/{rule}" for _, rule, _ in wanted]


def _event_version(data: Mapping[str, Any], name: str, version: str) -> RegisteredVersion:
    """The version that an event is about, as far as the event says."""
    tags = dict(data.get("tags") or {})
    if "key" in data:
        tags[str(data["key"])] = str(data.get("value", ""))
    aliases = (str(data["alias"]),) if data.get("alias") else tuple(data.get("aliases") or ())
    return RegisteredVersion(
        name,
        version,
        source=str(data.get("source") or ""),
        run_id=str(data.get("run_id") or ""),
        tags=tags,
        aliases=aliases,
        description=str(data.get("description") or ""),
    )
