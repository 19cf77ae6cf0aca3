"""What rules of the relay would do, and what they need: for the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, Transient
from resprout.configs.load import document, load
from resprout.configs.rules import Ready
from resprout.configs.schema import InfraConfig
from resprout.flows.rerun import standalone
from resprout.infra.relay.decide import Decision, deaf, decide
from resprout.infra.relay.delivery import Refused, read
from resprout.infra.relay.outbox import Outbox
from resprout.infra.relay.own import own
from resprout.infra.relay.registry import Gone, Registry, Version
from resprout.infra.relay.serve import prefect_url
from resprout.infra.relay.starter import FLOW, Missing, Starter
from resprout.infra.relay.webhook import EVENTS
from resprout.infra.store.store import ArtifactStore

ANY_VERSION = "model.source=models:/any/1"


@dataclass(frozen=True)
class Answer:
    """What an event would start, and where the version's facts are from."""

    version: Version
    facts: str
    decisions: tuple[tuple[Ready, Decision], ...]


def would_start(event: Path, rules: tuple[Ready, ...], infra: InfraConfig, home: Path) -> Answer:
    """Each rule's decision on a delivery's body in a file; nothing is started or kept.

    The version is read from the registry, as the relay does; where that has none, the event itself must do.
    """
    try:
        body = event.expanduser().read_bytes()
        delivery = read("test", body)
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
    told = _told(json.loads(body)["data"], delivery.name, delivery.version)
    registry, store = Registry(infra.mlflow, home), ArtifactStore.from_config(infra.store, home)
    version, facts = told, "the event alone"
    trail: tuple[Version, ...] = (told,)
    if infra.mlflow.tracking_uri is not None or (home / "mlflow.db").is_file():
        try:
            version = registry.version(delivery.name, delivery.version)
            trail, facts = registry.trail(version), f"the registry at {registry.shown_uri}"
        except Gone:
            facts = f"the event alone, because the registry at {registry.shown_uri} has no such version"
        except Transient as fault:
            facts = f"the event alone, because {fault}"
    read_it = facts.startswith("the registry")

    def ours() -> str | None:
        if read_it:
            return own(trail, registry, store)
        return "the event has the tag resprout.digest" if "resprout.digest" in told.tags else None

    def decision(ready: Ready) -> Decision:
        why = deaf(ready.rule, {delivery.kind}, version.name)
        return Decision(ready.rule, why=why) if why else decide(ready, version, trail, ours)

    return Answer(version, facts, tuple((ready, decision(ready)) for ready in rules))


def start_again(
    rule: str, name: str, number: str, rules: tuple[Ready, ...], infra: InfraConfig, home: Path
) -> str:
    """Id of a new flow run for a version that may have started the rule before; noted as the next attempt.

    What the rule refuses is refused here too. Raises BadInput, Transient where a server does not answer.
    """
    found = {ready.rule.name: ready for ready in rules}
    if rule not in found:
        raise BadInput(f"no rule is called {rule}; give one of {', '.join(found)}")
    ready, registry, uri = found[rule], Registry(infra.mlflow, home), f"models:/{name}/{number}"
    store, starter = ArtifactStore.from_config(infra.store, home), Starter(infra.prefect, prefect_url(infra))
    try:
        version = registry.version(name, number)
        trail = registry.trail(version)
    except Gone:
        raise BadInput(f"the registry at {registry.shown_uri} has no {uri}; give name and number") from None
    why = deaf(ready.rule, set(ready.rule.on), name)
    decision = decide(ready, version, trail, lambda: own(trail, registry, store))
    if why := why or decision.why:
        raise BadInput(f"rule {rule} starts nothing for {uri}: {why}; change the rule or the version")
    with closing(Outbox.open(infra.relay, home)) as outbox:
        attempt = len(outbox.started(rule, version))
        try:
            run = starter.start(ready.rule, version, decision.overrides, attempt)
        except Missing:
            raise BadInput(
                f"Prefect has no deployment {FLOW}/{rule}; run `resprout triggers apply`"
            ) from None
        outbox.note_start(rule, version, run, attempt)
    return run


def deploy_rules(rules: tuple[Ready, ...], infra: InfraConfig) -> list[str]:
    """Names of the deployments of all rules, made or brought up to date.

    Raises:
        BadInput: what `resprout deploy` refuses of a rule's config; then none was made.
    """
    from resprout.flows.check import check
    from resprout.flows.reach import automate, refuse_out_of_reach
    from resprout.infra.deployments import deploy

    wanted = []
    for ready in rules:
        pool = ready.rule.pool or infra.stack.pool
        # A version takes the place of the model that the config names.
        loaded = load(ready.path, [ANY_VERSION])
        data = standalone(loaded, document(ready.path))
        try:
            check(loaded)
            refuse_out_of_reach(infra, {key: data[key] for key in data if key != "model"}, pool)
        except BadInput as error:
            raise BadInput(f"rule {ready.rule.name}: {error}") from None
        wanted.append((data, ready.rule.name, pool))
    automate(infra, "resprout triggers apply")
    for data, name, pool in wanted:
        deploy(data, name, pool=pool, infra=infra)
    return [f"{FLOW}/{name}" for _, name, _ in wanted]


def _told(data: Mapping[str, Any], name: str, version: str) -> Version:
    """A version as an event tells of it; an event of an alias or a tag tells of little else."""
    tags = dict(data.get("tags") or {})
    if "key" in data:
        tags[str(data["key"])] = str(data.get("value", ""))
    aliases = (str(data["alias"]),) if data.get("alias") else tuple(data.get("aliases") or ())
    return Version(
        name,
        version,
        source=str(data.get("source") or ""),
        run_id=str(data.get("run_id") or ""),
        tags=tags,
        aliases=aliases,
        description=str(data.get("description") or ""),
    )
