"""From registry to Prefect, both real: one run for a version and a rule, whatever fails in between."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from pydantic import SecretStr

from relaying import add_deployment, add_version, claims, flow_runs, rule, until, write_rules
from resprout.configs.errors import Transient
from resprout.configs.infrastructure import MlflowConfig, PrefectConfig, RelayConfig
from resprout.configs.rules import LoadedRule, load_rules
from resprout.infra.prefect.flow_runs import FlowRuns, NoDeployment
from resprout.infra.triggers.model_registry import PAGE, ModelRegistry
from resprout.infra.triggers.reconciler import Reconciler, WatchedRules
from resprout.infra.triggers.state import FAILED, STARTED, WAITING, LastSeen, TriggerState

Make = Callable[..., Reconciler]
DEAD_PREFECT = FlowRuns(PrefectConfig(), "http://127.0.0.1:9/api")


class Recorded(FlowRuns):
    """A Prefect server that answers at once, by the idempotency key."""

    def __init__(self) -> None:
        super().__init__(PrefectConfig(), "http://127.0.0.1:9/api")
        self.keys: list[str] = []

    def start(self, deployment: str, key: str, name: str, overrides: Any, own: bool = False) -> str:
        if key not in self.keys:
            self.keys.append(key)
        return f"run {key}"

    def emit(self, *_: Any) -> None:
        pass

    def count(self) -> dict[str, int]:
        return {}

    def since(self, count: int = 0) -> list[str]:
        """What was started, without the time at which the version was created."""
        words = [key.split(" ") for key in self.keys[count:]]
        return [" ".join([*parts[:3], *parts[4:]]) for parts in words]


@pytest.fixture
def runs() -> Recorded:
    return Recorded()


def reasons(state: TriggerState, which: str) -> list[str]:
    return [entry.reason for entry in state.newest(which)]


def test_a_version_starts_a_run_with_what_the_registry_says(
    make: Make, state: TriggerState, mlflow: Any, named: str
) -> None:
    deployment = add_deployment(named, overrides=["prune.round_to=16"])
    overrides = {"seed": 3, "register.tags.from": "{{ name }}/{{ version }}: {{ tags.stage }}"}
    reconciler = make(rule(named, overrides=overrides))
    reconciler.look()
    number = add_version(mlflow, "chat-7b", tags={"stage": "prod\nseed: 4"})
    created = mlflow.get_model_version("chat-7b", number).creation_timestamp
    reconciler.wake("chat-7b")
    reconciler.look(everything=False)
    (run,) = flow_runs(deployment)
    assert run.parameters == {
        "config": {},
        "overrides": [
            "prune.round_to=16",
            'register.tags.from="chat-7b/1: prod\\nseed: 4"',
            "seed=3",
            'model.source="models:/chat-7b/1"',
        ],
        "claim": f"{named} chat-7b 1 {created}",
    }
    (entry,) = state.newest(STARTED)
    assert (entry.rule, entry.version, entry.flow_run_id) == (named, number, str(run.id))


def test_whatever_is_repeated_or_reordered_gives_one_run_for_each_rule(
    make: Make, state: TriggerState, mlflow: Any, named: str
) -> None:
    both = [add_deployment(f"{named}-a"), add_deployment(f"{named}-b")]
    on = ["created", "alias", "tag"]
    reconciler = make(rule(f"{named}-a", on=on), rule(f"{named}-b", on=on))
    reconciler.look()
    chance = random.Random(7)
    numbers = [str(number) for number in range(1, 4)]
    for _ in numbers:
        add_version(mlflow, "chat-7b")
        for _ in range(3):
            number = chance.choice([one.version for one in mlflow.search_model_versions("name = 'chat-7b'")])
            mlflow.set_registered_model_alias("chat-7b", f"alias-{chance.randrange(3)}", number)
            mlflow.set_model_version_tag("chat-7b", number, "stage", str(chance.random()))
            reconciler.wake("chat-7b")
            if chance.random() < 0.5:
                reconciler.look(everything=chance.random() < 0.3)
    reconciler.look()
    counts = state.counts()
    assert (counts[STARTED], counts[WAITING], counts[FAILED]) == (6, 0, 0)
    for name, deployment in zip("ab", both, strict=True):
        assert claims(deployment) == [f"{named}-{name} chat-7b {number}" for number in numbers]


def test_a_relay_that_dies_after_the_run_was_made_makes_no_second_one(
    make: Make, state: TriggerState, mlflow: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = add_deployment(named)
    make(rule(named)).look()
    number = add_version(mlflow, "chat-7b")
    with monkeypatch.context() as patch:
        # What kill -9 does between Prefect's answer and the note of it.
        for method in ("note_start", "put", "drop"):
            patch.setattr(state, method, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(rule(named)).look()
    assert len(flow_runs(deployment)) == 1
    assert state.newest(STARTED) == []
    make(rule(named)).look()
    (run,) = flow_runs(deployment)
    (entry,) = state.newest(STARTED)
    assert (entry.version, entry.flow_run_id) == (number, str(run.id))


def test_a_model_that_is_made_again_starts_its_first_version_again(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    reconciler = make(runs=runs)
    reconciler.look()
    for _ in range(2):
        for _ in range(2):
            add_version(mlflow, "chat-7b")
            reconciler.look()
        mlflow.delete_registered_model("chat-7b")
    assert runs.since() == [f"chat chat-7b {number}" for number in "1212"]
    assert len(set(runs.keys)) == 4
    add_version(mlflow, "code-7b")
    reconciler.look()
    mlflow.delete_registered_model("code-7b")
    add_version(mlflow, "code-7b")
    make(rule(models=["*"]), runs=runs).look()
    assert runs.since(4) == [], "it was there before the rule was for it"


def test_what_waits_for_prefect_is_started_once_it_is_there(
    make: Make, state: TriggerState, mlflow: Any, named: str, api_url: str, caplog: Any
) -> None:
    deployment = add_deployment(named)
    runs = FlowRuns(PrefectConfig(), "http://127.0.0.1:9/api")
    reconciler = make(rule(named), runs=runs, poll_seconds=0.2)
    # A look with nothing to start asks no Prefect.
    reconciler.look()
    for _ in range(5):
        add_version(mlflow, "chat-7b")
    reconciler.start()
    try:
        until(lambda: state.counts()[WAITING] == 5, 60)
        assert reasons(state, WAITING)[0].startswith("Prefect at http://127.0.0.1:9/api does not answer")
        assert b"resprout_relay_waiting 5.0" in reconciler.metrics.render(reconciler)
        time.sleep(2)
        runs.url = api_url
        until(lambda: state.counts()[STARTED] == 5, 60)
    finally:
        reconciler.stop()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in range(1, 6)]
    assert state.counts()[WAITING] == 0
    lines = [
        one.message for one in caplog.records if one.name == "resprout.relay" and one.levelname == "ERROR"
    ]
    assert len(lines) == 1, "an outage is logged once"


def test_an_outage_of_prefect_holds_up_no_first_look_at_other_models(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    make(runs=runs).look()
    add_version(mlflow, "chat-7b")
    add_version(mlflow, "code-7b")
    both = (rule(), rule("code", models=["code-*"]))
    with pytest.raises(Transient, match=r"Prefect at .* does not answer"):
        make(*both, runs=DEAD_PREFECT).look()
    # The new rule has begun all the same: what comes now is not old.
    add_version(mlflow, "code-7b")
    make(*both, runs=runs).look()
    assert runs.since() == ["chat chat-7b 1", "code code-7b 2"]


def test_what_waits_for_the_registry_is_started_once_it_is_there(
    make: Make, mlflow: Any, runs: Recorded, home: Path
) -> None:
    make(runs=runs).look()
    add_version(mlflow, "chat-7b")
    dead = make(registry=ModelRegistry(MlflowConfig(tracking_uri="http://127.0.0.1:9"), home), runs=runs)
    with pytest.raises(Transient, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        dead.look()
    make(runs=runs).look()
    assert runs.since() == ["chat chat-7b 1"]


def test_a_registry_that_does_not_answer_is_logged_once_and_looked_at_again(
    make: Make,
    home: Path,
    registry: ModelRegistry,
    runs: Recorded,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    dead = ModelRegistry(MlflowConfig(tracking_uri="http://user:hunter2@127.0.0.1:9"), home)
    reconciler = make(registry=dead, runs=runs, poll_seconds=0.05)
    reconciler.start()
    try:
        until(lambda: b'failures_total{kind="server"} 2.0' in reconciler.metrics.render(reconciler), 60)
        assert reconciler.fault() is None, "a relay that waits for a server is healthy"
        reconciler.registry = registry
        polled = b"last_poll_timestamp_seconds 0.0"
        until(lambda: polled not in reconciler.metrics.render(reconciler), 30)
    finally:
        reconciler.stop()
    lines = [one.message for one in caplog.records if one.levelname == "ERROR"]
    assert len(lines) == 1
    assert "is compared and started once it does" in lines[0]
    assert "hunter2" not in caplog.text


def test_a_missing_deployment_is_named_and_asked_for_again(
    make: Make, state: TriggerState, mlflow: Any, named: str
) -> None:
    other = f"{named}-other"
    there = add_deployment(other)
    reconciler = make(rule(named), rule(other))
    reconciler.look()
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    reconciler.look()
    missing = f"Prefect has no deployment compress/{named}; run `resprout triggers apply`"
    assert reasons(state, WAITING) == [missing] * 2
    assert claims(there) == [f"{other} chat-7b 1", f"{other} chat-7b 2"], "it holds up no other rule"
    deployment = add_deployment(named)
    reconciler.look()
    assert claims(deployment) == [f"{named} chat-7b 1", f"{named} chat-7b 2"]
    assert state.counts()[WAITING] == 0


@pytest.mark.parametrize(
    ("source", "tags", "changes", "expected"),
    [
        (
            "s3://models-evil/x",
            {},
            {"sources": ["s3://models/"]},
            "does not accept its source s3://models-evil/x",
        ),
        ("s3://models/../x", {}, {"sources": ["s3://models/"]}, "does not accept its source"),
        ("s3://models/x", {"r": "many"}, {"overrides": {"prune.round_to": "{{ tags.r }}"}}, "prune.round_to"),
        ("s3://models/x", {}, {"overrides": {"prune.round_to": "{{ tags.r }}"}}, "cannot be filled"),
    ],
)
def test_what_no_waiting_mends_fails_with_its_reason_until_it_is_tried_again(
    make: Make,
    state: TriggerState,
    mlflow: Any,
    runs: Recorded,
    source: str,
    tags: dict[str, str],
    changes: dict[str, Any],
    expected: str,
) -> None:
    reconciler = make(rule(**changes), runs=runs)
    reconciler.look()
    add_version(mlflow, "chat-7b", source, tags=tags)
    for _ in range(3):
        reconciler.look()
    (reason,) = reasons(state, FAILED)
    assert expected in reason
    assert runs.keys == []
    assert b'resprout_relay_failures_total{kind="version"} 1.0' in reconciler.metrics.render(reconciler)
    mended = make(rule(), runs=runs)
    mended.look()
    assert runs.keys == [], "a rule that is mended starts nothing old by itself"
    assert state.retry(None) == 1
    mended.look()
    if ".." not in source:
        assert runs.since() == ["chat chat-7b 1"]
        assert state.counts()[FAILED] == 0


def test_a_change_that_the_rule_is_for_tries_a_failed_version_again(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    reconciler = make(rule(on=["created", "tag"], overrides={"seed": "{{ tags.seed }}"}), runs=runs)
    reconciler.look()
    number = add_version(mlflow, "chat-7b")
    reconciler.look()
    assert runs.keys == []
    mlflow.set_model_version_tag("chat-7b", number, "seed", "5")
    reconciler.look()
    assert runs.since() == ["chat chat-7b 1"]


def test_a_version_that_was_deleted_starts_nothing_and_waits_no_longer(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded
) -> None:
    make(runs=runs).look()
    numbers = [add_version(mlflow, "chat-7b") for _ in range(3)]
    add_version(mlflow, "chat-other")
    mlflow.delete_model_version("chat-7b", numbers[0])
    with pytest.raises(Transient):
        make(runs=DEAD_PREFECT).look()
    assert [entry.version for entry in state.newest(WAITING)] == ["2", "3", "1"]
    mlflow.delete_model_version("chat-7b", numbers[1])
    mlflow.delete_registered_model("chat-other")
    make(runs=runs).look()
    assert runs.since() == ["chat chat-7b 3"]
    assert state.newest(WAITING) == []
    assert reasons(state, FAILED) == ["the registry holds no such version any more"] * 2


def test_what_waits_for_a_rule_that_is_taken_away_waits_no_longer(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded
) -> None:
    make(rule(), rule("other"), runs=runs).look()
    add_version(mlflow, "chat-7b")
    with pytest.raises(Transient):
        make(rule(), rule("other"), runs=DEAD_PREFECT).look()
    assert state.counts()[WAITING] == 2
    make(rule("other"), runs=runs).look()
    assert state.counts()[WAITING] == 0
    make(rule(), rule("other"), runs=runs).look()
    assert runs.since() == ["other chat-7b 1"]


def test_a_name_that_no_address_can_hold_starts_nothing(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded
) -> None:
    reconciler = make(runs=runs)
    reconciler.look()
    add_version(mlflow, "chat-a@b")
    reconciler.look()
    assert reasons(state, FAILED) == ["no address can name the model chat-a@b"]
    assert runs.keys == []


def test_a_database_that_is_restarted_loses_nothing(make: Make, mlflow: Any, named: str, home: Path) -> None:
    from servers import postgres_server

    deployment = add_deployment(named)
    with postgres_server() as server:
        server.create("relay")
        state = TriggerState.open(RelayConfig(database_url=SecretStr(server.url("relay"))), home)
        reconciler = make(rule(named), state=state, poll_seconds=0.2)
        reconciler.look()
        server.stop()
        add_version(mlflow, "chat-7b")
        reconciler.start()
        try:
            failed = b'failures_total{kind="server"} 1.0'
            until(lambda: failed in generate_latest(reconciler.metrics.registry), 30)
            server.start()
            until(lambda: state.counts()[STARTED] == 1, 60)
        finally:
            reconciler.stop()
            state.close()
    assert len(flow_runs(deployment)) == 1


def test_what_is_for_no_rule_asks_no_prefect(make: Make, state: TriggerState, mlflow: Any) -> None:
    reconciler = make(runs=DEAD_PREFECT)
    number = add_version(mlflow, "chat-7b")
    reconciler.look()
    add_version(mlflow, "other")
    mlflow.set_model_version_tag("chat-7b", number, "stage", "prod")
    reconciler.wake("other")
    assert reconciler.woken() == {}
    reconciler.wake("chat-7b")
    reconciler.look()
    assert (state.counts()[STARTED], state.counts()[WAITING]) == (0, 0)


def test_one_version_that_cannot_be_looked_at_holds_up_no_other(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = make(runs=runs)
    reconciler.look()
    for name in ("chat-7b", "chat-8b"):
        for _ in range(3):
            add_version(mlflow, name)
    version, model = ModelRegistry.version, ModelRegistry.model

    def sick_version(self: ModelRegistry, name: str, number: str) -> Any:
        if (name, number) == ("chat-8b", "1"):
            raise Transient("a version that answers 500")
        return version(self, name, number)

    def sick_model(self: ModelRegistry, name: str) -> Any:
        if name == "chat-7b":
            raise Transient("a model that answers 500")
        return model(self, name)

    monkeypatch.setattr(ModelRegistry, "version", sick_version)
    monkeypatch.setattr(ModelRegistry, "model", sick_model)
    for _ in range(3):
        with pytest.raises(Transient):
            reconciler.look()
    assert runs.since() == ["chat chat-8b 2", "chat chat-8b 3"]
    assert [entry.version for entry in state.newest(WAITING)] == ["1"]
    monkeypatch.undo()
    reconciler.look()
    assert sorted(runs.since(2)) == ["chat chat-7b 1", "chat chat-7b 2", "chat chat-7b 3", "chat chat-8b 1"]


def test_two_relays_with_one_database_start_one_run(
    make: Make, mlflow: Any, named: str, postgres: Any, home: Path
) -> None:
    postgres.create(named)
    config = RelayConfig(database_url=SecretStr(postgres.url(named)))
    deployment = add_deployment(named)
    relays = [make(rule(named), state=TriggerState.open(config, home)) for _ in range(2)]
    relays[0].look()
    numbers = [add_version(mlflow, "chat-7b") for _ in range(4)]
    # Both read what was seen before either writes.
    barrier = threading.Barrier(2)
    for relay in relays:
        entries = relay.state.entries

        def read(name: str, entries: Any = entries) -> list[LastSeen]:
            found = entries(name)
            barrier.wait(30)
            return list(found)

        relay.state.entries = read  # type: ignore[method-assign]
    threads = [threading.Thread(target=relay.look) for relay in relays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in numbers]
    assert relays[0].state.counts()[STARTED] == 4
    noted = [one.metrics.started.labels(named)._value.get() for one in relays]
    assert sum(noted) == 4, "a run that both asked for is counted once"
    for relay in relays:
        relay.state.close()


def test_the_first_look_is_where_things_begin(make: Make, mlflow: Any, runs: Recorded) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    reconciler = make(rule(on=["created", "alias", "tag"]), runs=runs)
    reconciler.look()
    assert runs.keys == []
    add_version(mlflow, "chat-7b")
    add_version(mlflow, "chat-new")
    add_version(mlflow, "other")
    reconciler.look()
    assert sorted(runs.since()) == ["chat chat-7b 3", "chat chat-new 1"]
    reconciler.look()
    assert len(runs.keys) == 2


def test_a_first_look_that_is_cut_short_ends_in_what_was_there_at_its_beginning(
    make: Make, mlflow: Any, runs: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("chat-7b", "chat-8b"):
        add_version(mlflow, name)
    versions = ModelRegistry.versions

    def fail(self: ModelRegistry, model: Any) -> Any:
        if model.name == "chat-8b":
            raise Transient("the registry is down")
        return versions(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "versions", fail)
        with pytest.raises(Transient):
            make(runs=runs).look()
    # The first model was seen, and one that is made now is new to the rule.
    add_version(mlflow, "chat-7b")
    add_version(mlflow, "chat-new")
    make(runs=runs).look()
    assert sorted(runs.since()) == ["chat chat-7b 2", "chat chat-new 1"]


def test_aliases_and_tags_are_found_though_mlflow_dates_no_change_of_them(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    for _ in range(3):
        add_version(mlflow, "chat-7b")
    mlflow.set_model_version_tag("chat-7b", "3", "stage", "prod")
    reconciler = make(rule("alias", on=["alias"]), rule("tag", on=["tag"]), runs=runs)
    reconciler.look()
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    mlflow.set_model_version_tag("chat-7b", "2", "stage", "prod")
    mlflow.delete_model_version_tag("chat-7b", "3", "stage")
    reconciler.look()
    assert runs.since() == ["alias chat-7b 1", "tag chat-7b 2"], "what is taken away starts nothing"
    mlflow.set_registered_model_alias("chat-7b", "champion", "2")
    reconciler.look()
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    reconciler.look()
    assert runs.since(2) == ["alias chat-7b 2"], "each version starts a rule once"


def test_each_alias_that_a_rule_names_starts_a_version_once(make: Make, mlflow: Any, runs: Recorded) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    for alias in ("champion", "prod-eu", "old"):
        mlflow.set_registered_model_alias("chat-7b", alias, "1")
    reconciler = make(rule(on=["alias"], aliases=["champion", "prod-*"]), runs=runs)
    reconciler.look()
    mlflow.set_registered_model_alias("chat-7b", "other", "1")
    reconciler.look()
    assert runs.keys == [], "an alias that was there before is not set by another"
    mlflow.set_registered_model_alias("chat-7b", "champion", "2")
    mlflow.set_registered_model_alias("chat-7b", "prod-us", "2")
    reconciler.look()
    assert runs.since() == ["chat chat-7b 2 @champion", "chat chat-7b 2 @prod-us"]
    for number in ("1", "2", "1"):
        mlflow.set_registered_model_alias("chat-7b", "champion", number)
        reconciler.look()
    assert runs.since(2) == ["chat chat-7b 1 @champion"]


def test_an_alias_that_comes_back_between_two_looks_may_start_nothing(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    reconciler = make(rule(on=["alias"], aliases=["champion"]), runs=runs)
    reconciler.look()
    for number in ("2", "1"):
        mlflow.set_registered_model_alias("chat-7b", "champion", number)
    reconciler.look()
    assert runs.keys == []


def test_an_alias_that_moved_on_before_the_run_could_start_starts_nothing(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded
) -> None:
    champion = rule(on=["alias"], aliases=["champion"])
    make(champion, runs=runs).look()
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    with pytest.raises(Transient):
        make(champion, runs=DEAD_PREFECT).look()
    assert [(one.version, one.alias) for one in state.newest(WAITING)] == [("1", "champion")]
    mlflow.set_registered_model_alias("chat-7b", "champion", "2")
    make(champion, runs=runs).look()
    assert runs.since() == ["chat chat-7b 2 @champion"]
    assert state.counts()[WAITING] == 0


def test_a_new_version_that_has_its_alias_already_starts_by_either(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    on = ["created", "alias"]
    reconciler = make(rule("any", on=on), rule("named", on=on, aliases=["champion"]), runs=runs)
    reconciler.look()
    add_version(mlflow, "chat-7b", tags={"stage": "prod"})
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    add_version(mlflow, "chat-7b")
    for _ in range(2):
        reconciler.look()
    assert runs.since() == ["any chat-7b 1", "named chat-7b 1 @champion", "any chat-7b 2"]


def test_a_version_that_is_still_being_made_waits(
    make: Make, mlflow: Any, runs: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    reconciler = make(runs=runs)
    reconciler.look()
    add_version(mlflow, "chat-7b")
    versions = ModelRegistry.versions

    def pending(self: ModelRegistry, model: Any) -> Any:
        return [replace(one, status="PENDING_REGISTRATION") for one in versions(self, model)]

    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "versions", pending)
        reconciler.look()
    assert runs.keys == []
    reconciler.look()
    assert runs.since() == ["chat chat-7b 1"]


def test_a_rule_may_backfill_once(make: Make, mlflow: Any, runs: Recorded) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    add_version(mlflow, "other")
    make(rule("plain"), runs=runs).look()
    reconciler = make(rule("plain"), rule("late", backfill=True, on=["tag"]), runs=runs)
    for _ in range(2):
        reconciler.look()
    assert runs.since() == ["late chat-7b 1", "late chat-7b 2"]
    add_version(mlflow, "chat-7b")
    reconciler.look()
    assert runs.since(2) == ["plain chat-7b 3"], "what is registered later is no backfill"
    # A rule may be told later that it backfills.
    make(rule("plain", backfill=True), runs=runs).look()
    assert runs.since(3) == ["plain chat-7b 1", "plain chat-7b 2"]


def test_a_rule_that_is_added_or_widened_starts_no_old_version(
    make: Make, mlflow: Any, runs: Recorded
) -> None:
    for name in ("chat-7b", "code-7b"):
        for _ in range(3):
            add_version(mlflow, name)
    make(runs=runs).look()
    add_version(mlflow, "code-7b")
    second = rule("second", models=["c*-7b"], on=["created", "alias", "tag"])
    reconciler = make(rule(), second, runs=runs)
    reconciler.look()
    assert runs.keys == []
    number = add_version(mlflow, "code-7b")
    reconciler.look()
    assert runs.since() == [f"second code-7b {number}"]
    # For a while no rule is for it, and what happens meanwhile is old for the rule that comes back.
    make(runs=runs).look()
    add_version(mlflow, "code-7b")
    mlflow.set_registered_model_alias("code-7b", "champion", "1")
    mlflow.set_model_version_tag("code-7b", "2", "stage", "prod")
    make(runs=runs).look()
    reconciler.look()
    assert len(runs.keys) == 1
    mlflow.set_registered_model_alias("code-7b", "champion", "2")
    reconciler.look()
    assert runs.since(1) == ["second code-7b 2"]
    # What a rule that is widened was for already stays new to it, also while the relay was away.
    add_version(mlflow, "chat-new")
    make(rule(models=["*"]), second, runs=runs).look()
    assert runs.since(2) == ["chat chat-new 1"]


def test_a_widened_rule_backfills_the_models_it_gains(make: Make, mlflow: Any, runs: Recorded) -> None:
    for name in ("chat-7b", "code-7b"):
        add_version(mlflow, name)
    make(rule(backfill=True), runs=runs).look()
    assert runs.since() == ["chat chat-7b 1"]
    reconciler = make(rule(backfill=True, models=["chat-*", "code-*"]), runs=runs)
    reconciler.look()
    add_version(mlflow, "code-new")
    reconciler.look()
    assert runs.since(1) == ["chat code-7b 1", "chat code-new 1"]


def test_another_registry_is_another_beginning(
    make: Make, mlflow: Any, runs: Recorded, tmp_path: Path, mlflow_template: Path
) -> None:
    from relaying import client_of

    make(runs=runs).look()
    (tmp_path / "other.db").write_bytes(mlflow_template.read_bytes())
    other = ModelRegistry(MlflowConfig(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}"), tmp_path)
    add_version(client_of(other.uri), "chat-7b")
    reconciler = make(registry=other, runs=runs)
    reconciler.look()
    assert runs.keys == []
    add_version(client_of(other.uri), "chat-7b")
    reconciler.look()
    assert runs.since() == ["chat chat-7b 2"]


def test_a_state_that_is_lost_begins_anew_and_starts_nothing_twice(
    make: Make, mlflow: Any, named: str, home: Path
) -> None:
    deployment = add_deployment(named)
    config = RelayConfig()
    first = TriggerState.open(config, home)
    reconciler = make(rule(named), state=first)
    reconciler.look()
    add_version(mlflow, "chat-7b")
    reconciler.look()
    first.close()
    for file in home.glob("relay.db*"):
        file.unlink()
    again = TriggerState.open(config, home)
    make(rule(named), state=again).look()
    # Even a rule that starts what is of the past finds the run that is there.
    make(rule(named, backfill=True), state=again).look()
    again.close()
    assert claims(deployment) == [f"{named} chat-7b 1"]


def test_all_pages_are_read(make: Make, mlflow: Any, runs: Recorded) -> None:
    reconciler = make(runs=runs)
    reconciler.look()
    mlflow.create_registered_model("chat-many")
    for _ in range(PAGE + 5):
        mlflow.create_model_version("chat-many", "s3://models/x")
    reconciler.look()
    assert runs.since() == [f"chat chat-many {number}" for number in range(1, PAGE + 6)]


@pytest.mark.parametrize("fault", [ValueError("an answer in HTML"), NoDeployment()])
def test_a_count_of_runs_that_fails_ends_no_looking(
    make: Make, mlflow: Any, runs: Recorded, fault: Exception
) -> None:
    def fail() -> dict[str, int]:
        raise fault

    runs.count = fail  # type: ignore[method-assign]
    reconciler = make(runs=runs, poll_seconds=0.05)
    reconciler.start()
    count = ("resprout_relay_failures_total", {"kind": "runs"})
    try:
        until(lambda: (reconciler.metrics.registry.get_sample_value(*count) or 0) >= 2, 30)
        add_version(mlflow, "chat-7b")
        until(lambda: runs.since() == ["chat chat-7b 1"], 30)
    finally:
        reconciler.stop()


def test_how_prefect_s_runs_are_can_be_watched(make: Make, api_url: str, mlflow: Any, named: str) -> None:
    add_deployment(named)
    runs = FlowRuns(PrefectConfig(), api_url)
    before = runs.count()["scheduled"]
    runs.start(named, named, "chat-watched-1", [])
    reconciler = make(runs=runs)
    reconciler.look()
    wanted = f'resprout_flow_runs{{state="scheduled"}} {before + 1}.0'.encode()
    assert wanted in reconciler.metrics.render(reconciler)


def test_a_fault_of_ours_with_one_version_holds_up_no_other(
    make: Make, state: TriggerState, mlflow: Any, runs: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = make(runs=runs)
    reconciler.look()
    for _ in range(3):
        add_version(mlflow, "chat-7b")
    start = runs.start

    def fail(deployment: str, key: str, name: str, overrides: Any, own: bool = False) -> str:
        if name == "chat-7b-2":
            raise KeyError("ours")
        return start(deployment, key, name, overrides, own)

    monkeypatch.setattr(runs, "start", fail)
    reconciler.look()
    assert runs.since() == ["chat chat-7b 1", "chat chat-7b 3"]
    assert reasons(state, WAITING) == ["KeyError: 'ours'"]
    monkeypatch.undo()
    reconciler.look()
    assert runs.since(2) == ["chat chat-7b 2"]


def test_rules_are_read_again_when_their_file_changes(
    make: Make, mlflow: Any, runs: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("resprout.infra.triggers.reconciler.RULES_SECONDS", 0.1)
    add_version(mlflow, "code-7b")
    reconciler = make(runs=runs)
    invalid = ("resprout_relay_rules_invalid", {})
    reconciler.start()
    try:
        until(lambda: reconciler.fault() is None, 30)
        write_rules(tmp_path / "rules", rule(), rule("code", models=["code-*"]))
        until(lambda: len(reconciler.rules.rules) == 2, 30)
        until(lambda: reconciler.state.rules(reconciler.registry.shown_uri).keys() == {"chat", "code"}, 30)
        add_version(mlflow, "code-7b")
        reconciler.wake("code-7b")
        until(lambda: runs.since() == ["code code-7b 2"], 30)
        # A file with a fault changes nothing, and says so once.
        (tmp_path / "rules" / "rules.yaml").write_text("rules: [{name: x, modles: [a]}]")
        until(lambda: reconciler.metrics.registry.get_sample_value(*invalid) == 1, 30)
        time.sleep(1)
        add_version(mlflow, "chat-7b")
        reconciler.wake("chat-7b")
        until(lambda: runs.since(1) == ["chat chat-7b 1"], 30)
        write_rules(tmp_path / "rules", rule("code", models=["code-*"]))
        until(lambda: reconciler.metrics.registry.get_sample_value(*invalid) == 0, 30)
        until(lambda: [loaded.rule.name for loaded in reconciler.rules.rules] == ["code"], 30)
    finally:
        reconciler.stop()
    faults = [one.message for one in caplog.records if "the rules stay as they were" in one.message]
    assert len(faults) == 1
    assert "did you mean 'models'" in faults[0]
    count = ("resprout_relay_failures_total", {"kind": "rules"})
    assert reconciler.metrics.registry.get_sample_value(*count) == 1


def test_a_run_config_of_a_rule_is_read_again_too(tmp_path: Path) -> None:
    path = write_rules(tmp_path / "rules")
    rules = WatchedRules(path)

    def reload() -> bool:
        # A file that is being written is left until it stays as it is.
        return rules.reload() or rules.reload()

    assert not reload()
    config = path.parent / "run.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "seed": 4711}))
    assert not rules.reload()
    assert rules.reload()
    assert rules.rules[0].data["seed"] == 4711
    config.unlink()
    assert not reload()
    assert "matches no file" in rules.fault
    write_rules(tmp_path / "rules")
    assert reload()
    assert rules.fault == ""


@pytest.mark.parametrize("half", ["", "rules: []"])
@pytest.mark.parametrize("name", ["rules.yaml", "run.yaml"])
def test_rules_that_are_being_written_while_they_are_read_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, name: str, half: str
) -> None:
    path = write_rules(tmp_path / "rules")
    rules = WatchedRules(path)
    before = rules.rules
    file = path.parent / name
    whole = file.read_text()

    def load_half(path: Path) -> tuple[LoadedRule, ...]:
        # An editor writes the file anew between the look at it and its reading, with the same text.
        file.write_text(half)
        try:
            return load_rules(path)
        finally:
            file.write_text(whole)

    rules.reload()
    file.write_text(whole)
    monkeypatch.setattr("resprout.infra.triggers.reconciler.load_rules", load_half)
    assert not rules.reload()
    assert not rules.reload()
    assert (rules.rules, rules.fault, caplog.messages) == (before, "", [])
    monkeypatch.undo()
    assert not rules.reload()
    assert not rules.reload()
    assert (rules.rules, rules.fault) == (before, "")
