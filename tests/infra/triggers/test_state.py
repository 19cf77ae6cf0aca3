"""The state in SQLite and in PostgreSQL, kept once by several relays; and that of an earlier version."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from relaying import add_deployment, add_version, claims, client_of, rule
from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import PrefectConfig, RelayConfig
from resprout.infra.prefect.flow_runs import FlowRuns
from resprout.infra.triggers.model_registry import RegisteredModel, RegisteredVersion
from resprout.infra.triggers.reconciler import Reconciler
from resprout.infra.triggers.state import FAILED, PAST, SEEN, STARTED, WAITING, LastSeen, TriggerState

Open = Callable[[], TriggerState]


@pytest.fixture(params=["sqlite", "postgres"])
def reopen(request: pytest.FixtureRequest, home: Path) -> Iterator[Open]:
    """Opens the same database again, as another relay does."""
    config = RelayConfig()
    if request.param == "postgres":
        server, name = request.getfixturevalue("postgres"), f"relay{uuid.uuid4().hex[:8]}"
        server.create(name)
        config = RelayConfig(database_url=SecretStr(server.url(name)))
    opened: list[TriggerState] = []

    def open_it() -> TriggerState:
        opened.append(TriggerState.open(config, home))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


def entry(version: int | str, state: str = SEEN, **more: Any) -> LastSeen:
    return LastSeen("chat", "chat-7b", str(version), 1_700_000_000_000, state=state, **more)


def test_entries_outlive_the_relay_and_are_put_over_those_of_before(reopen: Open) -> None:
    first = reopen()
    first.put([entry(1), entry(1, alias="champion"), entry(2, WAITING, reason="no deployment")])
    first.close()
    again = reopen()
    found = again.entries("chat-7b")
    assert found == [entry(1), entry(1, alias="champion"), entry(2, WAITING, reason="no deployment")]
    again.put([replace(found[2], state=FAILED, reason="refused")])
    assert again.entries("chat-7b")[2] == entry(2, FAILED, reason="refused")
    again.drop([found[1]])
    assert [one.alias for one in again.entries("chat-7b")] == ["", ""]
    assert again.entries("chat-8b") == []


def test_a_start_is_noted_once_and_stays(reopen: Open) -> None:
    one, other = reopen(), reopen()
    version = RegisteredVersion("chat-7b", "3", created=1_700_000_000_000)
    one.put([entry(3, WAITING)])
    assert one.starts("chat", version, "") == []
    assert one.note_start(entry(3, STARTED, flow_run_id="run-1"))
    assert not other.note_start(entry(3, STARTED, flow_run_id="run-2"))
    other.put([entry(3, WAITING, reason="Prefect does not answer")])
    other.drop(other.entries("chat-7b"))
    assert [start.flow_run_id for start in other.starts("chat", version, "")] == ["run-1"]
    assert other.starts("chat", replace(version, created=1_700_000_000_001), "") == []
    assert other.note_start(entry(3, STARTED, flow_run_id="run-3", attempt=1))
    assert one.note_start(entry(3, STARTED, flow_run_id="run-4", alias="champion"))
    assert [start.flow_run_id for start in one.starts("chat", version, "")] == ["run-1", "run-3"]
    assert {(start.flow_run_id, start.attempt) for start in other.newest(STARTED)} == {
        ("run-4", 0), ("run-3", 1), ("run-1", 0),
    }  # fmt: skip


def test_entries_are_counted_and_shown_by_state(reopen: Open) -> None:
    state = reopen()
    now = time.time()
    state.put([entry(number, WAITING, at=now - number) for number in range(3)])
    state.put([entry(number, FAILED, at=now + number) for number in range(3, 6)])
    state.put([entry(6, PAST), entry("", PAST)])
    assert state.counts() == {WAITING: 3, STARTED: 0, FAILED: 3, SEEN: 0, PAST: 1}
    assert [one.version for one in state.newest(WAITING)] == ["2", "1", "0"], "the oldest waits first"
    assert [one.version for one in state.newest(FAILED, 2)] == ["5", "4"]


def test_what_failed_can_be_tried_again_and_nothing_else(reopen: Open) -> None:
    state = reopen()
    state.put([entry(0, WAITING), entry(1, SEEN), *(entry(number, FAILED) for number in range(2, 5))])
    ids = {one.version: one.id for one in state.entries("chat-7b")}
    assert state.retry([ids["0"], ids["1"], ids["2"], 999]) == 1
    assert [one.version for one in state.newest(WAITING)] == ["0", "2"]
    assert state.retry(None) == 2
    assert state.counts() == {WAITING: 4, STARTED: 0, FAILED: 0, SEEN: 1, PAST: 0}


def test_what_failed_long_ago_counts_no_more(reopen: Open) -> None:
    state = reopen()
    now = time.time()
    state.put([entry(1, FAILED, at=now - 100), entry(2, FAILED, at=now), entry(3, WAITING, at=now - 100)])
    state.forgive(now - 50)
    assert [one.state for one in state.entries("chat-7b")] == [SEEN, FAILED, WAITING]


def test_what_no_database_can_keep_is_kept_as_far_as_it_can_be(reopen: Open) -> None:
    state = reopen()
    state.put([entry(1, FAILED, reason="half \ud800, nul \x00, line\nbreak " + "x" * 1000)])
    (found,) = state.newest(FAILED)
    assert found.reason.startswith("half  , nul  , line break xxx")
    assert len(found.reason) == 500


def test_a_rule_begins_once_for_all_relays(reopen: Open) -> None:
    one, other = reopen(), reopen()
    models = [RegisteredModel("chat-7b", 5)]
    assert one.rules("registry") == {}
    one.set_rule("registry", "chat", None, ("chat-*",), models)
    one.drop(one.entries("chat-7b"))
    # The other listed the models before, and must not take back what the first has seen since.
    other.set_rule("registry", "chat", None, ("chat-*",), models)
    assert other.entries("chat-7b") == []
    assert other.rules("registry") == {"chat": ("chat-*",)}
    assert other.rules("another") == {}
    other.set_rule("registry", "chat", ("chat-*",), ("*",), models)
    assert [(mark.version, mark.created, mark.state) for mark in one.entries("chat-7b")] == [("", 5, PAST)]
    one.set_rule("registry", "chat", ("chat-*",), ("c*",), [RegisteredModel("code", 6)])
    assert one.rules("registry") == {"chat": ("*",)}
    assert one.entries("code") == []


def test_relays_that_start_at_once_make_the_tables_once(reopen: Open) -> None:
    faults: list[Exception] = []

    def start(index: int) -> None:
        try:
            reopen().put([entry(index)])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(reopen().entries("chat-7b")) == 6


EARLIER = """
CREATE TABLE relay_deliveries (id INTEGER PRIMARY KEY, delivery TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  name TEXT NOT NULL, version TEXT NOT NULL, received FLOAT NOT NULL, due FLOAT NOT NULL,
  tries INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE relay_starts (rule TEXT, name TEXT, version TEXT, created BIGINT, attempt INTEGER,
  flow_run_id TEXT NOT NULL, at FLOAT NOT NULL, PRIMARY KEY (rule, name, version, created, attempt));
CREATE TABLE relay_seen (name TEXT, version TEXT, created BIGINT NOT NULL, aliases TEXT NOT NULL,
  tags TEXT NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (name, version));
CREATE TABLE relay_models (name TEXT PRIMARY KEY, created BIGINT NOT NULL, watched BOOLEAN NOT NULL);
CREATE TABLE relay_marks (mark TEXT PRIMARY KEY, at FLOAT NOT NULL)
"""
"""The tables of the relay before it was level-triggered."""


def test_a_database_of_an_earlier_relay_goes_on_where_it_was(
    reopen: Open, make: Callable[..., Reconciler], registry: Any, named: str
) -> None:
    mlflow, state = client_of(registry.uri), reopen()
    deployment = add_deployment(named)
    for _ in range(4):
        add_version(mlflow, "chat-7b", tags={"stage": "prod"})
    add_version(mlflow, "code-7b")
    mlflow.set_registered_model_alias("chat-7b", "champion", "2")
    born = {name: mlflow.get_registered_model(name).creation_timestamp for name in ("chat-7b", "code-7b")}
    made = {
        number: mlflow.get_model_version("chat-7b", number).creation_timestamp for number in ("1", "2", "3")
    }
    with state.engine.begin() as connection:
        for statement in EARLIER.split(";"):
            connection.execute(text(statement))

        def put(table: str, *values: Any) -> None:
            named_values = {f"v{index}": value for index, value in enumerate(values)}
            places = ", ".join(f":{name}" for name in named_values)
            connection.execute(text(f"INSERT INTO relay_{table} VALUES ({places})"), named_values)

        put("marks", f"registry {registry.shown_uri}", 1.0)
        put("models", "chat-7b", born["chat-7b"], True)
        put("models", "code-7b", born["code-7b"], False)
        tags = json.dumps({"stage": "prod"})
        # 1 was there before, 2 was started, 3 waits for Prefect, and 4 came after the last look.
        for number in ("1", "2", "3"):
            put("seen", "chat-7b", number, made[number], '["champion"]' if number == "2" else "[]", tags, 0)
        put("starts", named, "chat-7b", "2", made["2"], 0, "run-2", 2.0)
        put("starts", named, "chat-7b", "2", made["2"], 1, "run-2-again", 3.0)
        put("deliveries", 1, "a", "created", "chat-7b", "3", 1.0, 1.0, 0, "waiting", "")
        put("deliveries", 2, "b", "created", "chat-7b", "1", 1.0, 1.0, 0, "handled", "")
    mine = rule(named, models=["c*-7b"], on=["created", "alias"])
    dead = FlowRuns(PrefectConfig(), "http://127.0.0.1:9/api")
    with pytest.raises(Transient):
        make(mine, state=state, runs=dead).look()
    assert [one.version for one in state.newest(WAITING)] == ["3", "4"]
    # It is read once, whatever became of it.
    make(mine, state=reopen()).look()
    assert claims(deployment) == [f"{named} chat-7b 3", f"{named} chat-7b 4"]
    starts = state.starts(named, RegisteredVersion("chat-7b", "2", created=made["2"]), "")
    assert [(one.attempt, one.flow_run_id) for one in starts] == [(0, "run-2"), (1, "run-2-again")]
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    mlflow.set_registered_model_alias("chat-7b", "other", "2")
    make(mine, state=state).look()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in "134"]
    # A model that no rule was for is old for the rule; one that is made now is not.
    add_version(mlflow, "cold-7b")
    make(mine, state=state).look()
    assert f"{named} cold-7b 1" in claims(deployment)
    assert f"{named} code-7b 1" not in claims(deployment)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "is no PostgreSQL address"),
        ("postgresql://user:hunter2@host:port/x", "is no PostgreSQL address"),
        ("mysql://user:hunter2@host/x", "is no PostgreSQL address"),
        ("postgresql://user:hunter2@127.0.0.1:1/x", "the relay's database at 127.0.0.1 cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(
    home: Path, url: str, expected: str
) -> None:
    with pytest.raises(BadInput, match=expected) as fault:
        TriggerState.open(RelayConfig(database_url=SecretStr(url)), home)
    assert "hunter2" not in str(fault.value)
