"""From outbox to Prefect, with a real registry and a real server: one run for a version and a rule."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr

from relaying import add_deployment, add_version, claims, flow_runs, rule, until
from resprout.configs.errors import Transient
from resprout.configs.schema import MlflowConfig, PrefectConfig, RelayConfig
from resprout.infra.relay.delivery import Delivery
from resprout.infra.relay.handover import Handover, HandoverThread
from resprout.infra.relay.outbox import FAILED, HANDLED, WAITING, Outbox
from resprout.infra.relay.registry import Registry
from resprout.infra.relay.starter import Starter

Make = Callable[..., Handover]


@pytest.fixture
def named() -> str:
    """A rule's name, and with it a deployment's, of its own: the Prefect server is shared."""
    return f"rule-{uuid.uuid4().hex[:8]}"


def told(name: str, version: str, kind: str = "created") -> Delivery:
    return Delivery(uuid.uuid4().hex, kind, name, version)


def reasons(outbox: Outbox, state: str) -> list[str]:
    return [row.reason for row in outbox.rows(state)]


def test_a_version_starts_a_run_with_what_the_registry_says(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    deployment = add_deployment(named, overrides=["prune.round_to=16"])
    overrides = {"seed": 3, "register.tags.from": "{{ name }}/{{ version }}: {{ tags.stage }}"}
    handover = make_handover(rule(named, overrides=overrides))
    number = add_version(mlflow, "chat-7b", tags={"stage": "prod\nseed: 4"})
    created = mlflow.get_model_version("chat-7b", number).creation_timestamp
    outbox.add([told("chat-7b", number)])
    assert handover.once() == 1
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
    assert reasons(outbox, HANDLED) == [f"rule {named}: flow run {run.id}"]


def test_duplicates_and_reordering_give_one_run_for_each_rule(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    both = [add_deployment(f"{named}-a"), add_deployment(f"{named}-b")]
    on = ["created", "alias", "tag"]
    handover = make_handover(rule(f"{named}-a", on=on), rule(f"{named}-b", on=on))
    numbers = [add_version(mlflow, "chat-7b") for _ in range(3)]
    deliveries = [told("chat-7b", number, kind) for number in numbers for kind in on for _ in range(2)]
    random.Random(7).shuffle(deliveries)
    for one in deliveries:
        outbox.add([one])
        if random.Random(one.id).random() < 0.5:
            handover.once()
    while handover.once():
        pass
    assert outbox.counts()[0] == {WAITING: 0, HANDLED: len(deliveries), FAILED: 0}
    for name, deployment in zip("ab", both, strict=True):
        assert claims(deployment) == [f"{named}-{name} chat-7b {number}" for number in numbers]


def test_a_relay_that_dies_after_the_run_was_made_makes_no_second_one(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = add_deployment(named)
    handover = make_handover(rule(named))
    outbox.add([told("chat-7b", add_version(mlflow, "chat-7b"))])
    with monkeypatch.context() as patch:
        # What kill -9 does between Prefect's answer and the note of it.
        patch.setattr(outbox, "note_start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            handover.once()
    assert len(flow_runs(deployment)) == 1
    assert outbox.starts() == []
    (row,) = outbox.rows(WAITING)
    outbox.release([row.id])
    make_handover(rule(named)).once()
    (run,) = flow_runs(deployment)
    (start,) = outbox.starts()
    assert (start["version"], start["flow_run_id"]) == ("1", str(run.id))


def test_a_model_that_is_made_again_starts_its_first_version_again(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    deployment = add_deployment(named)
    handover = make_handover(rule(named))
    for _ in range(2):
        for _ in range(2):
            outbox.add([told("chat-7b", add_version(mlflow, "chat-7b"))])
            handover.once()
        mlflow.delete_registered_model("chat-7b")
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in "1122"]
    assert len({run.parameters["claim"] for run in flow_runs(deployment)}) == 4


def test_what_waits_for_prefect_is_handed_over_once_it_is_there(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str, api_url: str, caplog: Any
) -> None:
    deployment = add_deployment(named)
    starter = Starter(PrefectConfig(), "http://127.0.0.1:9/api")
    handover = make_handover(rule(named), starter=starter)
    outbox.add([told("chat-7b", add_version(mlflow, "chat-7b")) for _ in range(5)])
    thread = HandoverThread(handover)
    thread.start()
    try:
        until(lambda: handover.outbox.rows(WAITING)[1].tries, 60)
        assert outbox.counts()[0][WAITING] == 5
        assert "Prefect at http://127.0.0.1:9/api does not answer" in reasons(outbox, WAITING)[0]
        starter.url = api_url
        until(lambda: outbox.counts()[0][HANDLED] == 5, 60)
    finally:
        thread.stop()
    assert len(flow_runs(deployment)) == 5
    lines = [
        one.message for one in caplog.records if one.name == "resprout.relay" and one.levelname == "ERROR"
    ]
    assert len(lines) == 1, "an outage is told of once"


def test_what_waits_for_the_registry_is_handed_over_once_it_is_there(
    make_handover: Make, outbox: Outbox, mlflow: Any, registry: Registry, named: str, home: Path
) -> None:
    deployment = add_deployment(named)
    dead = Registry(MlflowConfig(tracking_uri="http://127.0.0.1:9"), home)
    handover = make_handover(rule(named), registry=dead)
    outbox.add([told("chat-7b", add_version(mlflow, "chat-7b"))])
    with pytest.raises(Transient, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        handover.once()
    (row,) = outbox.rows(WAITING)
    outbox.release([row.id])
    make_handover(rule(named)).once()
    assert len(flow_runs(deployment)) == 1


def test_a_missing_deployment_is_told_of_and_asked_for_again(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    handover = make_handover(rule(named))
    outbox.add([told("chat-7b", add_version(mlflow, "chat-7b"))])
    handover.once()
    (row,) = outbox.rows(WAITING)
    assert row.reason == f"Prefect has no deployment compress/{named}; run `resprout triggers apply`"
    assert row.due > time.time() + 2
    deployment = add_deployment(named)
    outbox.release([row.id])
    handover.once()
    assert len(flow_runs(deployment)) == 1
    assert outbox.counts()[0][HANDLED] == 1


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
def test_what_no_waiting_mends_fails_with_its_reason(
    make_handover: Make,
    outbox: Outbox,
    mlflow: Any,
    named: str,
    source: str,
    tags: dict[str, str],
    changes: dict[str, Any],
    expected: str,
) -> None:
    deployment = add_deployment(named)
    outbox.add([told("chat-7b", add_version(mlflow, "chat-7b", source, tags=tags))])
    handover = make_handover(rule(named, **changes))
    handover.once()
    (reason,) = reasons(outbox, FAILED)
    assert reason.startswith(f"rule {named}: ")
    assert expected in reason
    assert flow_runs(deployment) == []
    assert b'resprout_relay_failures_total{kind="version"} 1.0' in handover.metrics.render(outbox)


def test_a_version_that_was_deleted_starts_nothing(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    number = add_version(mlflow, "chat-7b")
    mlflow.delete_model_version("chat-7b", number)
    outbox.add([told("chat-7b", number), told("chat-never", "1")])
    make_handover(rule(named)).once()
    assert reasons(outbox, FAILED) == ["the registry holds no such version any more"] * 2


def test_a_name_that_no_address_can_hold_starts_nothing(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str
) -> None:
    outbox.add([told("chat-a@b", add_version(mlflow, "chat-a@b"))])
    make_handover(rule(named)).once()
    assert reasons(outbox, FAILED) == [f"rule {named}: no address can name the model chat-a@b"]


def test_a_database_that_is_restarted_loses_nothing_that_was_taken(
    make_handover: Make, mlflow: Any, named: str, home: Path
) -> None:
    from servers import postgres_server

    deployment = add_deployment(named)
    with postgres_server() as server:
        server.create("relay")
        outbox = Outbox.open(RelayConfig(database_url=SecretStr(server.url("relay"))), home)
        outbox.add([told("chat-7b", add_version(mlflow, "chat-7b"))])
        server.stop()
        handover = make_handover(rule(named), outbox=outbox)
        thread = HandoverThread(handover)
        thread.start()
        try:
            until(
                lambda: b'failures_total{kind="server"} 1.0' in generate_latest(handover.metrics.registry), 30
            )
            server.start()
            until(lambda: outbox.counts()[0][HANDLED] == 1, 60)
        finally:
            thread.stop()
            outbox.close()
    assert len(flow_runs(deployment)) == 1


def test_what_is_for_no_rule_asks_nobody(make_handover: Make, outbox: Outbox, named: str, home: Path) -> None:
    nobody = {
        "registry": Registry(MlflowConfig(tracking_uri="http://127.0.0.1:9"), home),
        "starter": Starter(PrefectConfig(), "http://127.0.0.1:9/api"),
    }
    outbox.add([told("other", "1"), told("chat-7b", "1", "tag")])
    make_handover(rule(named), **nobody).once()
    assert reasons(outbox, HANDLED) == ["no rule is for it"] * 2


def test_one_version_that_cannot_be_looked_at_holds_up_no_other(
    make_handover: Make, outbox: Outbox, mlflow: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = add_deployment(named)
    handover = make_handover(rule(named))
    numbers = [add_version(mlflow, "chat-7b") for _ in range(3)]
    outbox.add([told("chat-7b", number) for number in numbers])
    real = Registry.version

    def sick(self: Registry, name: str, number: str) -> Any:
        if number == "1":
            raise Transient("a version that answers 500")
        return real(self, name, number)

    monkeypatch.setattr(Registry, "version", sick)
    with pytest.raises(Transient):
        handover.once()
    until(lambda: outbox.rows(WAITING)[0].due <= time.time(), 20)
    with pytest.raises(Transient):
        handover.once()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in "23"]
    assert [row.version for row in outbox.rows(WAITING)] == ["1"]


def test_two_relays_with_one_database_start_one_run(
    make_handover: Make, mlflow: Any, named: str, postgres: Any, home: Path
) -> None:
    postgres.create(named)
    config = RelayConfig(database_url=SecretStr(postgres.url(named)))
    deployment = add_deployment(named)
    numbers = [add_version(mlflow, "chat-7b") for _ in range(4)]
    relays = [make_handover(rule(named), outbox=Outbox.open(config, home)) for _ in range(2)]
    # Both are told of everything, and both take rows of both: the lease is off.
    for relay in relays:
        relay.outbox.add([told("chat-7b", number) for number in numbers])
        taking = relay.outbox.take
        relay.outbox.take = lambda limit, _, taking=taking: taking(limit, 0.0)  # type: ignore[method-assign]
    threads = [threading.Thread(target=relay.once) for relay in relays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for relay in relays:
        relay.once()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in numbers]
    assert relays[0].outbox.counts()[0] == {WAITING: 0, HANDLED: 8, FAILED: 0}
    for relay in relays:
        relay.outbox.close()
